//! Explaining one frame: `translate` with its steps kept. What is explained is what would be done, since it is
//! the same function.

use flowtable::flow::Decision;
use flowtable::key::FlowKey;

use crate::translate::{Steps, View, translate};

/// One thing that was looked at or decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How deep in patch ports: 0 for the bridge the frame enters.
    pub depth: usize,
    /// In words.
    pub text: String,
}

/// The fate of a frame and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// In the order they were taken.
    pub steps: Vec<Step>,
    /// The verdict.
    pub decision: Decision,
}

impl Steps for Vec<Step> {
    fn step(&mut self, depth: usize, text: impl FnOnce() -> String) {
        self.push(Step { depth, text: text() });
    }
}

/// Explains what happens to a frame with this key. Changes nothing.
pub fn trace(view: View<'_>, key: &FlowKey) -> Trace {
    let mut steps = Vec::new();
    let decision = translate(view, key, &mut steps);
    Trace { steps, decision }
}
