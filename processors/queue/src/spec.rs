//! What a build may ask for. Every limit names itself and its unit; every refusal names the field.

use longshore_schemas::events::{BuildSpec, HealthCheck, RunSpec, StringMap};

/// Names, values, arguments and all else that a specification holds as text.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
pub const ARGUMENTS_MAX: usize = 1_000;
pub const VARIABLES_MAX: usize = 500;
pub const REPOSITORY_BYTES_MAX: usize = 2_048;
pub const OUTPUT_BYTES_MAX: usize = 1_024;
pub const TIME_LIMIT_SECONDS_MAX: u32 = 24 * 60 * 60;
pub const STOP_SECONDS_MAX: u32 = 60 * 60;
pub const HEALTH_SECONDS_MAX: u32 = 24 * 60 * 60;

/// Whether a specification can be built; if not, which field is wrong and what to do.
pub(crate) fn check(build: &BuildSpec) -> Result<(), String> {
    repository(&build.repository)?;
    command("command", &build.command)?;
    output(&build.output)?;
    variables("environment", &build.environment)?;
    labels(&build.labels)?;
    if !(1..=TIME_LIMIT_SECONDS_MAX).contains(&build.time_limit_seconds) {
        return Err(format!("time_limit_seconds must be from 1 to {TIME_LIMIT_SECONDS_MAX}"));
    }
    run(&build.run)?;
    let bytes = text_bytes(build);
    if bytes > SPEC_BYTES_MAX {
        return Err(format!("build holds {bytes} bytes of text; at most {SPEC_BYTES_MAX} are allowed"));
    }
    Ok(())
}

fn repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("repository is empty; give a git URL".into());
    }
    if repository.len() > REPOSITORY_BYTES_MAX {
        return Err(format!("repository is longer than {REPOSITORY_BYTES_MAX} bytes"));
    }
    // A git command line must never read it as an option.
    if repository.starts_with('-') || repository.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("repository must be a URL: it may not begin with '-' nor hold spaces or control characters".into());
    }
    Ok(())
}

fn command(field: &str, command: &[String]) -> Result<(), String> {
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

fn output(output: &str) -> Result<(), String> {
    if output.is_empty() {
        return Err("output is empty; give the path of the file or directory that the command leaves".into());
    }
    if output.len() > OUTPUT_BYTES_MAX {
        return Err(format!("output is longer than {OUTPUT_BYTES_MAX} bytes"));
    }
    let leaves = output.starts_with('/') || output.split('/').any(|part| part == "..");
    if leaves || output.contains('\0') {
        return Err(format!("output {output:?} must be a relative path inside the checkout, without '..'"));
    }
    Ok(())
}

fn variables(field: &str, variables: &StringMap) -> Result<(), String> {
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

fn labels(labels: &StringMap) -> Result<(), String> {
    if labels.len() > VARIABLES_MAX {
        return Err(format!("labels has more than {VARIABLES_MAX} entries"));
    }
    if labels.keys().any(String::is_empty) {
        return Err("labels has an entry without a name".into());
    }
    Ok(())
}

fn run(run: &RunSpec) -> Result<(), String> {
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

fn text_bytes(build: &BuildSpec) -> usize {
    let maps = [&build.environment, &build.labels, &build.run.environment];
    let in_maps: usize = maps.iter().flat_map(|map| map.iter()).map(|(name, value)| name.len() + value.len()).sum();
    let in_commands: usize = build.command.iter().chain(&build.run.command).map(String::len).sum();
    in_maps + in_commands + build.repository.len() + build.output.len() + build.run.health.http_path.len()
}
