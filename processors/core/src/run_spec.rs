//! How nodes run an artifact, as whoever publishes one may ask for it. Every refusal names the field.

use longshore_schemas::events::{HealthCheck, RunSpec, StringMap};

pub const ARGUMENTS_MAX: usize = 1_000;
pub const VARIABLES_MAX: usize = 500;
pub const STOP_SECONDS_MAX: u32 = 60 * 60;
pub const HEALTH_SECONDS_MAX: u32 = 24 * 60 * 60;

/// Whether nodes can run something so; if not, which field is wrong and what to do.
pub fn check(run: &RunSpec) -> Result<(), String> {
    command("run.command", &run.command)?;
    variables("run.environment", &run.environment)?;
    if run.stop_seconds > STOP_SECONDS_MAX {
        return Err(format!("run.stop_seconds must be at most {STOP_SECONDS_MAX}"));
    }
    let HealthCheck { http_path, successes, interval_ms, deadline_seconds } = &run.health;
    let is_path = http_path.starts_with('/') && http_path.chars().all(|c| c.is_ascii_graphic());
    if !http_path.is_empty() && !is_path {
        return Err(
            "run.health.http_path must begin with '/' and hold no spaces; leave it empty for no HTTP check".into()
        );
    }
    if !(1..=1_000).contains(successes) {
        return Err("run.health.successes must be from 1 to 1000".into());
    }
    if !(10..=60_000).contains(interval_ms) {
        return Err("run.health.interval_ms must be from 10 to 60000".into());
    }
    if !(1..=HEALTH_SECONDS_MAX).contains(deadline_seconds) {
        return Err(format!("run.health.deadline_seconds must be from 1 to {HEALTH_SECONDS_MAX}"));
    }
    Ok(())
}

/// A program and its arguments.
pub fn command(field: &str, command: &[String]) -> Result<(), String> {
    if command.first().is_none_or(String::is_empty) {
        return Err(format!("{field} is empty; give a program and its arguments"));
    }
    if command.len() > ARGUMENTS_MAX {
        return Err(format!("{field} has more than {ARGUMENTS_MAX} arguments"));
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(format!("{field} holds a zero byte"));
    }
    Ok(())
}

/// Variables of an environment.
pub fn variables(field: &str, variables: &StringMap) -> Result<(), String> {
    if variables.len() > VARIABLES_MAX {
        return Err(format!("{field} has more than {VARIABLES_MAX} variables"));
    }
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "{field} has the variable {name:?}; a name may not be empty nor hold '=' or a zero byte"
            ));
        }
        if value.contains('\0') {
            return Err(format!("{field}.{name} holds a zero byte"));
        }
    }
    Ok(())
}
