//! The control socket's verbs, one function each in a table: `sluice` and Debian's `ovs-appctl` both call them.
//!
//! Verbs that Open vSwitch has too take its arguments and answer in its words, as text (ovs-vswitchd(8)); our
//! own are called `sluice/...` and answer with a JSON value ([`report`]).

mod entries;
pub mod message;
mod overlay;
mod ovs;
pub mod report;
pub mod server;
pub mod socket;
mod tnl;
pub mod verbs;

use serde_json::Value;

use message::Request;

/// What a verb answers: text or a value, or one line that says what is wrong and how to cure it.
pub type Answer = Result<Value, String>;

/// One verb for a switch of type `S`.
pub struct Verb<S> {
    /// The method.
    pub name: &'static str,
    /// Its parameters, for `list-commands`.
    pub usage: &'static str,
    /// How few parameters and how many.
    pub params: (usize, usize),
    /// Does it.
    pub run: fn(&mut S, &[&str]) -> Answer,
}

/// Answers a request with the verb it names; `list-commands` is answered from the table itself. Refusals are
/// worded as Open vSwitch's (`process_command` in its lib/unixctl.c).
pub fn dispatch<S>(verbs: &[Verb<S>], switch: &mut S, request: &Request) -> Answer {
    let name = &request.method;
    if name == LIST {
        return Ok(list_commands(verbs).into());
    }
    let Some(verb) = verbs.iter().find(|verb| verb.name == name) else {
        let cure = "(use \"list-commands\" to see a list of valid commands)";
        return Err(format!("\"{name}\" is not a valid command {cure}"));
    };
    let (least, most) = verb.params;
    if request.params.len() < least {
        return Err(format!("\"{name}\" command requires at least {least} arguments"));
    }
    if request.params.len() > most {
        return Err(format!("\"{name}\" command takes at most {most} arguments"));
    }
    let params: Option<Vec<&str>> = request.params.iter().map(Value::as_str).collect();
    let params = params.ok_or_else(|| format!("\"{name}\" command has non-string argument"))?;
    (verb.run)(switch, &params)
}

/// The verb that every table has.
const LIST: &str = "list-commands";

fn list_commands<S>(verbs: &[Verb<S>]) -> String {
    let mut verbs: Vec<_> = verbs.iter().map(|verb| (verb.name, verb.usage)).chain([(LIST, "")]).collect();
    verbs.sort_unstable();
    let lines: String = verbs.iter().map(|(name, usage)| format!("  {name:<23} {usage}\n")).collect();
    format!("The available commands are:\n{lines}")
}
