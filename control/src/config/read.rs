//! Reading TOML with a table of keys, so that every problem of a file is found in one go.
//!
//! `toml` parses on after a syntax error and knows where each key and value stands. Each [`Key`] takes its
//! value in and complains to the [`Reader`]; then [`check`] looks at the values together, and what it finds
//! is shown at the place of the key it is about. A finding about a key that was already wrong is not shown.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, Machine, keys};
use crate::check;
use crate::problem::{Problem, Problems, did_you_mean};

/// A value and where it stands.
pub(super) type Node<'i> = Spanned<DeValue<'i>>;

/// One key of a table that is read into a `T`.
pub(crate) struct Key<T> {
    /// With hyphens.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    presence: Presence,
    take: fn(&mut T, &Node, &mut Reader),
}

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `true` or `false`
    Boolean,
    /// `10`
    Integer,
    /// `"eth1"`
    Text,
    /// `[10, "20-29"]`
    List,
    /// Tables.
    Nested,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Optional,
    Required,
}

impl<T> Key<T> {
    /// A key that has a default.
    pub(super) const fn new(name: &'static str, shape: Shape, take: fn(&mut T, &Node, &mut Reader)) -> Self {
        Key { name, shape, presence: Presence::Optional, take }
    }

    /// A key that must be there.
    pub(super) const fn required(
        name: &'static str,
        shape: Shape,
        take: fn(&mut T, &Node, &mut Reader),
    ) -> Self {
        Key { name, shape, presence: Presence::Required, take }
    }
}

/// A table of the file. Numbers count from 0 in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Entity {
    /// The file itself.
    Root,
    /// `[switch]`
    Switch,
    /// `[pool]`
    Pool,
    /// `[[bridge]]`
    Bridge(usize),
    /// `[[bridge.port]]`: bridge, port.
    Port(usize, usize),
    /// An entry of `segment`: bridge, entry.
    Segment(usize, usize),
    /// An entry of `fdb`: bridge, entry.
    Fdb(usize, usize),
    /// An entry of `neigh`: bridge, entry.
    Neigh(usize, usize),
    /// `[[route]]`
    Route(usize),
}

/// A key of a table, or the table itself if the key is empty.
pub(crate) type Place = (Entity, &'static str);

/// What has been read so far: where things stand, and what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) machine: &'a Machine,
    /// The table that is being read.
    pub(super) entity: Entity,
    key: &'static str,
    wrong: Vec<(usize, String)>,
    places: HashMap<Place, usize>,
    broken: HashSet<Place>,
}

impl Reader<'_> {
    /// Notes what is wrong with the value of the present key.
    pub(super) fn wrong(&mut self, node: &Node, message: impl std::fmt::Display) {
        self.broken.insert((self.entity, self.key));
        self.wrong.push((node.span().start, format!("`{}`: {message}", self.key)));
    }

    fn wrong_at(&mut self, span: Range<usize>, message: String) {
        self.wrong.push((span.start, message));
    }

    /// Reads a table into `into`.
    pub(super) fn table<T>(&mut self, node: &Node, keys: &[Key<T>], into: &mut T) {
        let DeValue::Table(table) = node.get_ref() else {
            return self.wrong(node, format_args!("found {}, expected a table", found(node)));
        };
        self.places.insert((self.entity, ""), node.span().start);
        let outer = self.key;
        for (name, value) in table.iter() {
            let canonical = canonical(name.get_ref());
            match keys.iter().find(|key| key.name == canonical) {
                None => self.wrong_at(name.span(), unknown_key(name.get_ref(), keys)),
                Some(key) if self.places.contains_key(&(self.entity, key.name)) => {
                    self.wrong_at(name.span(), format!("`{}` is given twice", key.name));
                }
                Some(key) => {
                    self.places.insert((self.entity, key.name), value.span().start);
                    self.key = key.name;
                    (key.take)(into, value, self);
                }
            }
        }
        self.key = outer;
        let missing = |key: &&Key<T>| {
            key.presence == Presence::Required && !self.places.contains_key(&(self.entity, key.name))
        };
        for key in keys.iter().filter(missing).collect::<Vec<_>>() {
            self.broken.insert((self.entity, key.name));
            self.wrong_at(node.span(), format!("`{}` is missing", key.name));
        }
    }

    /// Reads a table that is the one of its kind.
    pub(super) fn single<T>(&mut self, node: &Node, entity: Entity, keys: &[Key<T>], into: &mut T) {
        let outer = std::mem::replace(&mut self.entity, entity);
        self.table(node, keys, into);
        self.entity = outer;
    }

    /// Reads tables of a kind, in order; one that is not a table leaves a default in its place.
    pub(super) fn each<T: Default>(
        &mut self,
        node: &Node,
        entity: impl Fn(usize) -> Entity,
        keys: &[Key<T>],
    ) -> Vec<T> {
        let DeValue::Array(elements) = node.get_ref() else {
            let cure = format!("expected a list of tables, each with a header [[…{}]]", self.key);
            self.wrong(node, format_args!("found {}, {cure}", found(node)));
            return Vec::new();
        };
        let read = |(i, element): (usize, &Node)| {
            let mut into = T::default();
            self.single(element, entity(i), keys, &mut into);
            into
        };
        elements.iter().enumerate().map(read).collect()
    }

    /// Notes what breaks a rule, unless that follows from a key that is wrong already.
    fn finding(&mut self, finding: check::Finding) {
        let place = |key: &&'static str| (finding.entity, *key);
        let follows = finding.keys.iter().any(|key| self.broken.contains(&place(key)));
        let shown = finding.keys.first().and_then(|key| self.places.get(&place(key)));
        match shown.or_else(|| self.places.get(&(finding.entity, ""))) {
            Some(offset) if !follows => self.wrong.push((*offset, finding.message)),
            // The defaults of a table that is not in the file; other tables without a place are broken.
            None if matches!(finding.entity, Entity::Switch | Entity::Pool) && !follows => {
                self.wrong.push((0, finding.message));
            }
            _ => {}
        }
    }
}

/// Reads a file. See [`super::parse_on`].
pub(super) fn config(text: &str, machine: &Machine) -> Result<Config, Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        machine,
        entity: Entity::Root,
        key: "",
        wrong: Vec::new(),
        places: HashMap::new(),
        broken: HashSet::new(),
    };
    let mut config = Config::default();
    config.switch.cores = machine.cores.last().copied().into_iter().collect();
    let root = Spanned::new(root.span(), DeValue::Table(root.into_inner()));
    reader.table(&root, keys::ROOT, &mut config);
    if errors.is_empty() {
        check::findings(&config).into_iter().for_each(|finding| reader.finding(finding));
    }
    let problems = in_order(text, reader.wrong, &errors);
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

/// All problems in the order of the file. On a line with a syntax error only the first one is shown: the rest
/// is what the parser made of it.
fn in_order(text: &str, wrong: Vec<(usize, String)>, errors: &[toml::de::Error]) -> Vec<Problem> {
    let offset = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
    let syntax = errors.iter().map(|error| (offset(error), error.message().to_owned())).collect();
    let mut by_line: BTreeMap<Option<usize>, Problem> = BTreeMap::new();
    for problem in Problem::all_at(text, syntax) {
        by_line.entry(problem.line).or_insert(problem);
    }
    let mut problems = Problem::all_at(text, wrong);
    problems.dedup();
    problems.retain(|problem| !by_line.contains_key(&problem.line));
    problems.extend(by_line.into_values());
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

/// A key as the tables of keys spell it: OVS columns have `_` where ours have `-`.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('_', "-")
}

/// Complains about a key that a table does not have.
pub(crate) fn unknown_key<T>(name: &str, keys: &[Key<T>]) -> String {
    let names = || keys.iter().map(|key| key.name);
    let hint = did_you_mean(&canonical(name), names());
    if hint.is_empty() {
        return format!("unknown key `{name}`, expected one of {}", names().collect::<Vec<_>>().join(", "));
    }
    format!("unknown key `{name}`{hint}")
}

/// What stands there, for messages.
pub(super) fn found(node: &Node) -> String {
    match node.get_ref() {
        DeValue::String(text) => format!("the string `{}`", text.escape_debug()),
        DeValue::Integer(_) => "an integer".to_owned(),
        DeValue::Float(_) => "a float".to_owned(),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
