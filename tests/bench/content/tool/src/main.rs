//! Prints the lines of standard input that match, and counts of what a field of them holds.

use std::{collections::BTreeMap, io::BufRead};

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Lines that match this are looked at
    pattern: regex::Regex,
    /// Lines are JSON: count the values of this field
    #[arg(long)]
    field: Option<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut counts = BTreeMap::<String, u64>::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if !options.pattern.is_match(&line) {
            continue;
        }
        match &options.field {
            None => println!("{line}"),
            Some(field) => {
                let value: serde_json::Value = serde_json::from_str(&line)?;
                *counts.entry(value[field].to_string()).or_default() += 1;
            }
        }
    }
    for (value, count) in counts {
        println!("{count:>8} {value}");
    }
    Ok(())
}
