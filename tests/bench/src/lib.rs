//! What all benchmarks share: the report (a table for people, and as the last line one JSON object for programs), and what a
//! process used.
//!
//! A figure has a key with its unit in the name and, if there is one, a goal. A figure that could not be measured is
//! null with a note: it is never left out and never invented.
#![allow(clippy::print_stdout, reason = "a benchmark's result is what it prints")]

pub mod bare;
pub mod bittorrent;
pub mod builds;
pub mod keys;
pub mod memory;
pub mod roles;
pub mod s3;
pub mod trees;
mod usage;

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde_json::{Map, Value, json};

pub use usage::{Usage, machine};

/// The one of `longshore` itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Context for the others.
    None,
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {}", number(bound)),
            Self::AtMost(bound) => format!("≤ {}", number(bound)),
            Self::None => String::new(),
        }
    }

    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(value >= bound),
            Self::AtMost(bound) => Some(value <= bound),
            Self::None => None,
        }
    }
}

/// The figures of one benchmark, in the order in which they are shown.
pub struct Report {
    name: &'static str,
    rows: Vec<[String; 4]>,
    figures: Map<String, Value>,
    goals_met: bool,
}

impl Report {
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new(), figures: Map::new(), goals_met: true }
    }

    /// A number that was measured.
    pub fn figure(&mut self, key: &str, value: f64, goal: Goal) {
        let met = goal.met(value);
        self.goals_met &= met.unwrap_or(true);
        let verdict = met.map_or("", |met| if met { "met" } else { "missed" });
        self.rows.push([key.to_owned(), number(value), goal.text(), verdict.to_owned()]);
        let whole = value.fract() == 0.0 && value.abs() < 9e15;
        let rounded = if whole { json!(value as i64) } else { json!((value * 1e4).round() / 1e4) };
        self.figures.insert(key.to_owned(), rounded);
    }

    /// A number that could not be measured, and why.
    pub fn missing(&mut self, key: &str, note: &str) {
        self.goals_met = false;
        self.rows.push([key.to_owned(), "–".to_owned(), String::new(), note.to_owned()]);
        self.figures.insert(key.to_owned(), Value::Null);
        self.figures.insert(format!("{key}_note"), json!(note));
    }

    /// What is more than one number, for programs only: people were shown it otherwise.
    pub fn detail(&mut self, key: &str, value: Value) {
        self.figures.insert(key.to_owned(), value);
    }

    /// Prints the table and, last, the JSON line. Says whether every goal was met.
    pub fn print(self) -> bool {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header([self.name, "measured", "goal", ""]);
        table.add_rows(self.rows);
        println!("{table}");
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!(self.name));
        line.extend(self.figures);
        line.insert("goals_met".to_owned(), json!(self.goals_met));
        line.insert("machine".to_owned(), machine());
        println!("{}", Value::Object(line));
        self.goals_met
    }
}

/// Few digits for small numbers, groups of three for large ones.
fn number(value: f64) -> String {
    if value.abs() < 100.0 && value.fract() != 0.0 {
        return format!("{value:.3}");
    }
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [(0.0, "0"), (1.5, "1.500"), (99.0, "99"), (1234.5, "1,234"), (21_000_000.0, "21,000,000")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_missed_or_missing_figure_misses_the_goals() {
        let mut report = Report::new("test");
        report.figure("good", 2.0, Goal::AtLeast(2.0));
        assert!(report.goals_met);
        report.figure("bad", 2.1, Goal::AtMost(2.0));
        assert!(!report.goals_met);
        let mut report = Report::new("test");
        report.missing("gone", "no such tool");
        assert!(!report.goals_met && report.figures["gone"].is_null());
    }
}
