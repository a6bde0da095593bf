//! What a build may ask for. Every limit names itself and its unit; every refusal names the field.

pub use longshore_processor::run_spec::{ARGUMENTS_MAX, HEALTH_SECONDS_MAX, STOP_SECONDS_MAX, VARIABLES_MAX};
use longshore_processor::run_spec::{check as run, command, text_bytes as run_text_bytes, variables};
use longshore_schemas::events::{BuildSpec, StringMap};

/// Names, values, arguments and all else that a specification holds as text.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
pub const REPOSITORY_BYTES_MAX: usize = 2_048;
pub const OUTPUT_BYTES_MAX: usize = 1_024;
pub const TIME_LIMIT_SECONDS_MAX: u32 = 24 * 60 * 60;

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

fn labels(labels: &StringMap) -> Result<(), String> {
    if labels.len() > VARIABLES_MAX {
        return Err(format!("labels has more than {VARIABLES_MAX} entries"));
    }
    if labels.keys().any(String::is_empty) {
        return Err("labels has an entry without a name".into());
    }
    Ok(())
}

fn text_bytes(build: &BuildSpec) -> usize {
    let maps = [&build.environment, &build.labels];
    let in_maps: usize = maps.iter().flat_map(|map| map.iter()).map(|(name, value)| name.len() + value.len()).sum();
    let in_command: usize = build.command.iter().map(String::len).sum();
    in_maps + in_command + build.repository.len() + build.output.len() + run_text_bytes(&build.run)
}
