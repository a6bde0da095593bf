//! Logs, to standard error: standard output belongs to what a command answers.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::Error;

/// The variables that override the filter, in this order.
pub const FILTER_VARIABLES: [&str; 2] = ["LONGSHORE_LOG", "RUST_LOG"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json"),
        }
    }
}

/// What every process leaves out: its Avro library warns of unions of one event, which are to grow.
const QUIET: &str = "apache_avro=error";

/// Sends the process's logs to standard error. `filter` holds unless a variable of [`FILTER_VARIABLES`] is set.
pub fn init(format: Format, filter: &str) -> Result<(), Error> {
    let set = FILTER_VARIABLES.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let usual = format!("{filter},{QUIET}");
    let registry = tracing_subscriber::registry().with(parse(set.as_deref().unwrap_or(&usual))?);
    let result = match format {
        Format::Text => {
            // Colours are for terminals: in a file they are noise.
            let layer = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
            registry.with(layer).try_init()
        }
        Format::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    };
    result.map_err(|_| Error::TelemetryTwice)
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|error| Error::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        parse("info,longshore_api=debug").expect("valid");
        let error = parse("longshore=loud").expect_err("not a level");
        assert!(error.to_string().contains("longshore=loud"), "{error}");
    }
}
