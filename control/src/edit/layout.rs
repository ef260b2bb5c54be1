//! Changes of TOML text that leave every line alone that they are not about.
//!
//! Values are set and tables added with `toml_edit`. It gives all that stands above an item to the item, so
//! to remove one we cut its lines ourselves: comments elsewhere stay, even those above a removed key; only
//! the comment right above a removed table goes with it.
//!
//! Every function takes a text that [`crate::config::parse`] took, and a table that is in it; it fails only
//! where `toml_edit` is stricter than `toml`.

use std::collections::BTreeSet;
use std::ops::Range;

use toml_edit::{Array, ArrayOfTables, Decor, Document, Item, RawString, Table, TableLike, Value};

use crate::config::{Entity, canonical};
use crate::problem::Problem;

/// Sets a key of a table; its comment stays.
pub(super) fn set(text: &str, entity: Entity, (key, mut value): (&str, Value)) -> Result<String, Problem> {
    rewrite(text, |root| match value_mut(root, entity, key) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => insert(root, entity, (key, Item::Value(value))),
    })
}

fn value_mut<'t>(root: &'t mut Table, entity: Entity, key: &str) -> Option<&'t mut Value> {
    let table = table_mut(root, entity)?;
    let key = spelling(table, key)?;
    table.get_mut(&key)?.as_value_mut()
}

fn insert(root: &mut Table, entity: Entity, (key, item): (&str, Item)) {
    let inline = is_inline(root, entity);
    let Some(table) = table_mut(root, entity) else { return };
    if inline {
        at_end_of_inline(table, |table| table.insert(key, item));
    } else {
        table.insert(key, item);
    }
}

/// Takes a key out of a table, if it is there.
pub(super) fn unset(text: &str, entity: Entity, key: &str) -> Result<String, Problem> {
    let document = parse(text)?;
    let Some(table) = table(document.as_table(), entity) else { return Ok(text.to_owned()) };
    let Some(key) = spelling(table, key) else { return Ok(text.to_owned()) };
    let lines = table.get_key_value(&key).and_then(|(key, item)| Some(key.span()?.start..item.span()?.end));
    match lines {
        Some(span) if !is_inline(document.as_table(), entity) => Ok(cut(text, whole_lines(text, span))),
        _ => rewrite(text, |root| {
            let table = table_mut(root, entity);
            table.into_iter().for_each(|table| at_end_of_inline(table, |table| table.remove(&key)));
        }),
    }
}

/// Adds or removes a key of an inline table; the space before the closing brace stays there.
fn at_end_of_inline(table: &mut dyn TableLike, change: impl FnOnce(&mut dyn TableLike) -> Option<Item>) {
    let swap_suffix = |table: &mut dyn TableLike, suffix: RawString| {
        let last = table.iter_mut().last().and_then(|(_, item)| item.as_value_mut());
        let decor = last.map(Value::decor_mut)?;
        let old = decor.suffix().cloned();
        decor.set_suffix(suffix);
        old
    };
    let space = swap_suffix(table, RawString::default());
    change(table);
    swap_suffix(table, space.unwrap_or_default());
}

/// Adds a table to a list of tables, which is made as headers if it is not there.
pub(super) fn push(text: &str, list: (Entity, &str), table: Table) -> Result<String, Problem> {
    let empty = Item::ArrayOfTables(ArrayOfTables::new());
    rewrite(text, |root| push_to(root, list, (vec![table], empty)))
}

/// Adds tables to a list of tables, which is made as an array if it is not there.
pub(super) fn push_inline(text: &str, list: (Entity, &str), tables: Vec<Table>) -> Result<String, Problem> {
    if tables.is_empty() {
        return Ok(text.to_owned());
    }
    let empty = Item::Value(Value::Array(Array::new()));
    rewrite(text, |root| push_to(root, list, (tables, empty)))
}

fn push_to(root: &mut Table, (parent, list): (Entity, &str), (entries, empty): (Vec<Table>, Item)) {
    if table(root, parent).is_some_and(|parent| !parent.contains_key(list)) {
        insert(root, parent, (list, empty));
    }
    match table_mut(root, parent).and_then(|parent| parent.get_mut(list)) {
        Some(Item::ArrayOfTables(tables)) => entries.into_iter().for_each(|entry| tables.push(entry)),
        Some(Item::Value(Value::Array(array))) => {
            entries.into_iter().for_each(|entry| push_element(array, entry));
        }
        _ => {}
    }
}

/// Adds an element; if the last one has a line of its own, so has this one.
fn push_element(array: &mut Array, table: Table) {
    let mut element = Value::InlineTable(table.into_inline_table());
    let last = array.iter_mut().last().map(Value::decor_mut);
    let indent = last.as_ref().and_then(|decor| decor.prefix()?.as_str()).and_then(line_indent);
    let Some((indent, last)) = indent.zip(last) else { return array.push(element) };
    // What stands between the last element and the bracket, if there is no comma, is the element's suffix.
    let suffix = last.suffix().cloned().unwrap_or_default();
    last.set_suffix("");
    *element.decor_mut() = Decor::new(indent, suffix);
    array.push_formatted(element);
}

/// The newline and the space after it that an element begins with, without a comment before.
fn line_indent(prefix: &str) -> Option<String> {
    prefix.rfind('\n').map(|newline| prefix[newline..].to_owned())
}

/// Removes tables from a list, by their numbers.
pub(super) fn remove(
    text: &str,
    (parent, list): (Entity, &str),
    indices: &BTreeSet<usize>,
) -> Result<String, Problem> {
    let document = parse(text)?;
    match table(document.as_table(), parent).and_then(|parent| parent.get(list)) {
        Some(Item::ArrayOfTables(tables)) => {
            let mut sections = Vec::new();
            let gone = indices.iter().filter_map(|index| tables.get(*index));
            gone.for_each(|table| sections_of(table, &mut sections));
            sections.sort_by_key(|section| section.start);
            let cut_section = |text: String, section: &Range<usize>| cut_section(&text, section.clone());
            Ok(sections.iter().rev().fold(text.to_owned(), cut_section))
        }
        _ => rewrite(text, |root| {
            let list = table_mut(root, parent).and_then(|parent| parent.get_mut(list));
            let array = list.and_then(Item::as_array_mut);
            array.into_iter().for_each(|array| remove_elements(array, indices));
        }),
    }
}

/// Removes elements, and the comments that are theirs: on lines above, and behind them on their last line. Those of
/// others stay, although TOML has what stands behind a comma belong to the next element.
fn remove_elements(array: &mut Array, indices: &BTreeSet<usize>) {
    let last = array.len().checked_sub(1).filter(|last| indices.contains(last));
    let end = last.and_then(|last| array.get(last)?.decor().suffix().cloned());
    let mut before: Option<String> = None;
    for (index, element) in array.iter_mut().enumerate() {
        let prefix = element.decor().prefix().and_then(RawString::as_str).unwrap_or_default().to_owned();
        if indices.contains(&index) {
            before.get_or_insert_with(|| first_line(&prefix).to_owned());
        } else if let Some(before) = before.take() {
            element.decor_mut().set_prefix(before + &prefix[first_line(&prefix).len()..]);
        }
    }
    let trailing = array.trailing().as_str().unwrap_or_default().to_owned();
    if let Some(before) = before.filter(|_| trailing.contains('\n')) {
        array.set_trailing(before + &trailing[first_line(&trailing).len()..]);
    }
    let mut index = 0;
    array.retain(|_| {
        index += 1;
        !indices.contains(&(index - 1))
    });
    let last = array.iter_mut().last();
    last.zip(end).into_iter().for_each(|(last, end)| last.decor_mut().set_suffix(end));
}

/// Up to the first newline.
fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// The bytes of a table with a header, from the header to its last value, and those of the tables below it.
fn sections_of(table: &Table, sections: &mut Vec<Range<usize>>) {
    let Some(header) = table.span() else { return };
    let mut end = header.end;
    for (_, item) in table.iter() {
        match item {
            Item::ArrayOfTables(tables) => tables.iter().for_each(|table| sections_of(table, sections)),
            item => end = end.max(item.span().map_or(end, |span| span.end)),
        }
    }
    sections.push(header.start..end);
}

/// Cuts a section, the comment right above it, and one of the blank lines that then meet.
fn cut_section(text: &str, section: Range<usize>) -> String {
    let mut lines = whole_lines(text, section);
    let line_above = |start: usize| {
        let above = text[..start].strip_suffix('\n')?;
        Some(above.rfind('\n').map_or(0, |newline| newline + 1)..start)
    };
    while let Some(above) =
        line_above(lines.start).filter(|above| text[above.clone()].trim_start().starts_with('#'))
    {
        lines.start = above.start;
    }
    let below_is_blank = text[lines.end..].lines().next().is_none_or(|line| line.trim().is_empty());
    match line_above(lines.start) {
        Some(above) if below_is_blank && text[above.clone()].trim().is_empty() => lines.start = above.start,
        None if below_is_blank => lines.end = whole_lines(text, lines.end..lines.end).end,
        _ => {}
    }
    cut(text, lines)
}

/// From the start of the first line to behind the newline of the last.
fn whole_lines(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[span.end..].find('\n').map_or(text.len(), |newline| span.end + newline + 1);
    start..end
}

fn cut(text: &str, range: Range<usize>) -> String {
    [&text[..range.start], &text[range.end..]].concat()
}

/// Changes a document. `toml_edit` writes newlines; a file with CRLF keeps them.
fn rewrite(text: &str, change: impl FnOnce(&mut Table)) -> Result<String, Problem> {
    let mut document = parse(text)?.into_mut();
    change(document.as_table_mut());
    let written = document.to_string();
    Ok(if text.contains("\r\n") { written.replace('\n', "\r\n") } else { written })
}

fn parse(text: &str) -> Result<Document<String>, Problem> {
    let at = |error: &toml_edit::TomlError| error.span().map_or(text.len(), |span| span.start);
    Document::parse(text.to_owned()).map_err(|error| Problem::at(text, at(&error), error.message()))
}

/// The list a table is in, and where.
fn parent(entity: Entity) -> (Entity, &'static str, usize) {
    match entity {
        Entity::Root | Entity::Switch => (Entity::Root, "switch", 0),
        Entity::Pool => (Entity::Root, "pool", 0),
        Entity::Bridge(b) => (Entity::Root, "bridge", b),
        Entity::Port(b, p) => (Entity::Bridge(b), "port", p),
        Entity::Segment(b, s) => (Entity::Bridge(b), "segment", s),
        Entity::Fdb(b, f) => (Entity::Bridge(b), "fdb", f),
        Entity::Neigh(b, n) => (Entity::Bridge(b), "neigh", n),
        Entity::Route(r) => (Entity::Root, "route", r),
    }
}

fn table(root: &Table, entity: Entity) -> Option<&dyn TableLike> {
    if entity == Entity::Root {
        return Some(root);
    }
    let (up, list, index) = parent(entity);
    match table(root, up)?.get(list)? {
        Item::ArrayOfTables(tables) => tables.get(index).map(|table| table as &dyn TableLike),
        item => item.as_array()?.get(index)?.as_inline_table().map(|table| table as &dyn TableLike),
    }
}

fn table_mut(root: &mut Table, entity: Entity) -> Option<&mut dyn TableLike> {
    if entity == Entity::Root {
        return Some(root);
    }
    let (up, list, index) = parent(entity);
    match table_mut(root, up)?.get_mut(list)? {
        Item::ArrayOfTables(tables) => tables.get_mut(index).map(|table| table as &mut dyn TableLike),
        item => {
            let table = item.as_array_mut()?.get_mut(index)?.as_inline_table_mut()?;
            Some(table)
        }
    }
}

/// Is the table written in braces?
fn is_inline(root: &Table, entity: Entity) -> bool {
    let (up, list, _) = parent(entity);
    entity != Entity::Root
        && !matches!(table(root, up).and_then(|up| up.get(list)), Some(Item::ArrayOfTables(_)))
}

/// How the file spells a key: with hyphens or underscores.
fn spelling(table: &dyn TableLike, key: &str) -> Option<String> {
    table.iter().map(|(spelled, _)| spelled).find(|spelled| canonical(spelled) == key).map(str::to_owned)
}
