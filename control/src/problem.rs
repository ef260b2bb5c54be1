//! What is wrong with a configuration, in words an operator can act on.

use std::fmt;
use std::path::Path;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, from 1; `None` if no place in a file is to blame.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong and what was expected: lower case, one line.
    pub message: String,
}

impl Problem {
    /// A problem without a place.
    pub fn new(message: impl Into<String>) -> Self {
        Problem { line: None, column: None, message: message.into() }
    }

    /// A problem at a byte offset of `text`, which is clamped to its end.
    pub fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        Problem::all_at(text, vec![(offset, message.into())]).remove(0)
    }

    /// Problems at byte offsets of `text`, which are clamped to its end, in the order of the text. One pass.
    pub fn all_at(text: &str, mut wrong: Vec<(usize, String)>) -> Vec<Problem> {
        wrong.sort();
        let (mut line, mut column, mut seen) = (1, 1, 0);
        let place = |(offset, message): (usize, String)| {
            let end = (0..=offset.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            let passed = &text[seen..end];
            seen = end;
            column = match passed.rfind('\n') {
                None => column + passed.chars().count(),
                Some(newline) => passed[newline + 1..].chars().count() + 1,
            };
            line += passed.matches('\n').count();
            Problem { line: Some(line), column: Some(column), message }
        };
        wrong.into_iter().map(place).collect()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong, in the order of the file. An error: never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// `file:line:column: message`, one problem a line.
    pub fn in_file(&self, file: &Path) -> String {
        let line = |problem: &Problem| {
            let gap = if problem.line.is_some() { "" } else { " " };
            format!("{}:{gap}{problem}", file.display())
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// `, did you mean `x`?` for the name that is most like `word`, or nothing if none is.
pub fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let length = word.chars().count();
    let near = (1 + length / 4).min(length.saturating_sub(1));
    let distance = |name: &&str| strsim::damerau_levenshtein(word, name);
    match names.into_iter().filter(|name| distance(name) <= near).min_by_key(distance) {
        Some(name) => format!(", did you mean `{name}`?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "a = 1\n# ä\nü = ä\n";
        let at = |offset| Problem::at(text, offset, "odd").to_string();
        let of = |needle| at(text.rfind(needle).unwrap());
        assert_eq!(of("a ="), "1:1: odd");
        assert_eq!(of("ü"), "3:1: odd");
        assert_eq!(of("ä"), "3:5: odd");
        assert_eq!(at(999), "4:1: odd");
        let all = (0..=text.len() + 1).rev().map(|offset| (offset, "odd".into())).collect();
        let alone: Vec<String> = (0..=text.len() + 1).map(at).collect();
        assert_eq!(Problem::all_at(text, all).iter().map(Problem::to_string).collect::<Vec<_>>(), alone);
    }

    #[test]
    fn near_names_are_offered() {
        let names = ["tag", "trunks", "type"];
        assert_eq!(did_you_mean("tagg", names), ", did you mean `tag`?");
        assert_eq!(did_you_mean("trnuks", names), ", did you mean `trunks`?");
        assert_eq!(did_you_mean("colour", names), "");
    }

    #[test]
    fn a_file_name_stands_in_front() {
        let problems = Problems(vec![Problem::at("x", 0, "odd"), Problem::new("even")]);
        assert_eq!(problems.in_file(Path::new("a.toml")), "a.toml:1:1: odd\na.toml: even");
    }
}
