//! How things are shown: tables for people, JSON for programs.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use longshore_schemas::Timestamp;
use serde::Serialize;

use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// For people, on stderr.
pub(crate) fn message(text: &str) {
    // Nobody reads: nothing to be done about it.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Data, on stdout. A reader that has enough (`head`) ends the program quietly.
pub(crate) fn data(text: &str) -> Result<(), Error> {
    raw(text.as_bytes())?;
    raw(b"\n")
}

pub(crate) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| Error::Other(anyhow::Error::new(error).context("cannot write to stdout"))),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Other(error.into()))?;
    data(&text)
}

/// A table without frames, which `awk` reads as well as people do.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}

pub(crate) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// "12 s ago".
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    match now.since(time) {
        short if short < Duration::from_millis(100) => "now".to_owned(),
        long => format!("{} ago", duration(long)),
    }
}

/// The two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 if duration.subsec_millis() == 0 => format!("{} s", duration.as_secs()),
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        s @ 10..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// "12.5 MiB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A status in words: `rolled back` for `RolledBack`, `not_found` becomes `not found`.
pub(crate) fn word(value: &impl Serialize) -> String {
    let Ok(serde_json::Value::String(text)) = serde_json::to_value(value) else { return "?".to_owned() };
    let mut words = String::new();
    for c in text.chars() {
        match c {
            '_' => words.push(' '),
            'A'..='Z' => {
                words.push_str(if words.is_empty() { "" } else { " " });
                words.push(c.to_ascii_lowercase());
            }
            c => words.push(c),
        }
    }
    words
}

/// A command as a shell would take it.
pub(crate) fn command(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = words.iter().map(|word| match word {
        word if !word.is_empty() && word.chars().all(is_plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// What a list leaves out, on stderr, so that nobody takes a part for the whole.
pub(crate) fn more(next: Option<&String>) {
    if let Some(next) = next {
        message(&format!("there are more: --after '{next}' shows the next, --limit more at once"));
    }
}

/// The first line of a message, cut to what fits a table.
pub(crate) fn brief(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let line = text.lines().next().unwrap_or("");
    if line.chars().count() <= CHARS_MAX && line.len() == text.len() {
        return line.to_owned();
    }
    format!("{}…", line.chars().take(CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_well() {
        let table = [
            (500, "0.5 s"),
            (12_000, "12 s"),
            (75_000, "1 min 15 s"),
            (2 * 3_600_000, "2 h 0 min"),
            (26 * 3_600_000, "1 d 2 h"),
        ];
        for (ms, text) in table {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(size(64 * 1024 * 1024), "64.0 MiB");
        assert_eq!(size(1024 * 1024 / 2), "512.0 KiB");
        assert_eq!(size(10 * 1024 * 1024 * 1024), "10.0 GiB");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(brief("one\ntwo"), "one…");
        assert_eq!(brief("one"), "one");
        assert_eq!(word(&"RolledBack"), "rolled back");
        assert_eq!(word(&"not_found"), "not found");
        let words = ["sh", "-c", "echo it's", ""].map(str::to_owned);
        assert_eq!(command(&words), r"sh -c 'echo it'\''s' ''");
    }

    #[test]
    fn tables_are_plain() {
        let rows = vec![vec!["default-1".to_owned(), "running".to_owned()], vec!["d-10".to_owned(), "ok".to_owned()]];
        assert_eq!(table(&["job", "status"], rows), "JOB        STATUS\ndefault-1  running\nd-10       ok");
    }
}
