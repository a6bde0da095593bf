//! How nodes run an artifact, as whoever publishes one may ask for it. Every refusal names the field.

use std::ops::RangeInclusive;

use longshore_schemas::events::{HealthCheck, Hook, Hooks, LogRotation, RunLimits, RunSpec, StringMap};

pub const ARGUMENTS_MAX: usize = 1_000;
pub const VARIABLES_MAX: usize = 500;
pub const STOP_SECONDS_MAX: u32 = 60 * 60;
pub const HEALTH_SECONDS_MAX: u32 = 24 * 60 * 60;
pub const HOOK_SECONDS_MAX: u32 = 60 * 60;
pub const ENVIRONMENT_FILES_MAX: usize = 16;
const NAME_CHARS_MAX: usize = 32;
/// All files of one service's output.
const LOG_MIB_MAX: u32 = 10 * 1024;

/// Whether nodes can run something so; if not, which field is wrong and what to do.
pub fn check(run: &RunSpec) -> Result<(), String> {
    command("run.command", &run.command)?;
    variables("run.environment", &run.environment)?;
    environment_files(&run.environment_files)?;
    within("run.stop_seconds", run.stop_seconds, 0..=STOP_SECONDS_MAX)?;
    health(&run.health)?;
    hooks(&run.hooks)?;
    account("run.user", run.user.as_deref())?;
    account("run.group", run.group.as_deref())?;
    limits(&run.limits)?;
    let LogRotation { file_mib, files } = run.log;
    within("run.log.file_mib", file_mib, 1..=1024)?;
    within("run.log.files", files, 1..=100)?;
    within("run.log.file_mib times run.log.files", file_mib * files, 1..=LOG_MIB_MAX)
}

/// All that a spec holds as text.
pub fn text_bytes(run: &RunSpec) -> usize {
    let variables: usize = run.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    let Hooks { before_fetch, before_stop, after_stop, before_start, after_start, validate } = &run.hooks;
    let hooks = [before_fetch, before_stop, after_stop, before_start, after_start, validate].into_iter().flatten();
    let commands = hooks.map(|hook| &hook.command).chain([&run.command, &run.health.exec, &run.environment_files]);
    let accounts = [&run.user, &run.group].into_iter().flatten().map(String::len).sum::<usize>();
    variables + commands.flatten().map(String::len).sum::<usize>() + accounts + run.health.http_path.len()
}

fn within(field: &str, value: u32, range: RangeInclusive<u32>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!("{field} must be from {} to {}", range.start(), range.end()))
}

fn health(check: &HealthCheck) -> Result<(), String> {
    let is_path = check.http_path.starts_with('/') && check.http_path.chars().all(|c| c.is_ascii_graphic());
    if !check.http_path.is_empty() && !is_path {
        return Err(
            "run.health.http_path must begin with '/' and hold no spaces; leave it empty for no HTTP check".into()
        );
    }
    let kinds = [!check.http_path.is_empty(), check.tcp, !check.exec.is_empty()];
    if kinds.into_iter().filter(|set| *set).count() > 1 {
        return Err("run.health has more than one of http_path, tcp and exec: keep the one that says most".into());
    }
    if !check.exec.is_empty() {
        command("run.health.exec", &check.exec)?;
    }
    within("run.health.successes", check.successes, 1..=1_000)?;
    within("run.health.failures", check.failures, 1..=1_000)?;
    within("run.health.interval_ms", check.interval_ms, 10..=60_000)?;
    within("run.health.timeout_ms", check.timeout_ms, 10..=60_000)?;
    within("run.health.deadline_seconds", check.deadline_seconds, 1..=HEALTH_SECONDS_MAX)?;
    within("run.health.grace_seconds", check.grace_seconds.unwrap_or_default(), 0..=HEALTH_SECONDS_MAX)
}

fn hooks(hooks: &Hooks) -> Result<(), String> {
    let Hooks { before_fetch, before_stop, after_stop, before_start, after_start, validate } = hooks;
    hook("before_fetch", before_fetch.as_ref())?;
    if before_fetch.as_ref().is_some_and(|hook| !hook.command[0].starts_with('/')) {
        return Err("run.hooks.before_fetch.command is run before the release's bytes are there: name a program of \
                    the machine by its full path"
            .into());
    }
    hook("before_stop", before_stop.as_ref())?;
    hook("after_stop", after_stop.as_ref())?;
    hook("before_start", before_start.as_ref())?;
    hook("after_start", after_start.as_ref())?;
    hook("validate", validate.as_ref())
}

fn hook(name: &str, hook: Option<&Hook>) -> Result<(), String> {
    let Some(hook) = hook else { return Ok(()) };
    command(&format!("run.hooks.{name}.command"), &hook.command)?;
    within(&format!("run.hooks.{name}.timeout_seconds"), hook.timeout_seconds, 1..=HOOK_SECONDS_MAX)
}

fn environment_files(files: &[String]) -> Result<(), String> {
    if files.len() > ENVIRONMENT_FILES_MAX {
        return Err(format!("run.environment_files names more than {ENVIRONMENT_FILES_MAX} files"));
    }
    let is_path = |file: &&String| file.starts_with('/') && !file.contains('\0');
    match files.iter().find(|file| !is_path(file)) {
        Some(file) => Err(format!("run.environment_files has {file:?}: name a file of the machine by its full path")),
        None => Ok(()),
    }
}

/// A user or group of the machine. Whether it is there only the machine knows.
fn account(field: &str, name: Option<&str>) -> Result<(), String> {
    let Some(name) = name else { return Ok(()) };
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if name.is_empty() || name.len() > NAME_CHARS_MAX || name.starts_with('-') || !is_name(name) {
        return Err(format!("{field} is {name:?}: give a name or a number, or leave it out for the agent's own"));
    }
    Ok(())
}

fn limits(limits: &RunLimits) -> Result<(), String> {
    let RunLimits { memory_mib, cpu_percent, open_files, processes } = limits;
    let check = |name: &str, value: &Option<u32>, range| match value {
        Some(value) => within(&format!("run.limits.{name}"), *value, range),
        None => Ok(()),
    };
    check("memory_mib", memory_mib, 4..=1 << 24)?;
    check("cpu_percent", cpu_percent, 1..=100_000)?;
    check("open_files", open_files, 16..=1 << 20)?;
    check("processes", processes, 1..=1 << 22)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(json: &serde_json::Value) -> RunSpec {
        let mut spec = serde_json::json!({"command": ["./web"]});
        spec.as_object_mut().expect("a spec").extend(json.as_object().expect("fields").clone());
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn what_nodes_can_do_passes() {
        let table = [
            serde_json::json!({}),
            serde_json::json!({"hooks": {"before_fetch": {"command": ["/usr/bin/df"]}, "validate": {"command": ["./ok"]}}}),
            serde_json::json!({"health": {"tcp": true, "grace_seconds": 5}, "user": "www-data", "group": "33"}),
            serde_json::json!({"health": {"exec": ["./check", "-q"]}, "environment_files": ["/etc/web.env"]}),
            serde_json::json!({"limits": {"memory_mib": 512, "cpu_percent": 150}, "log": {"file_mib": 1, "files": 1}}),
        ];
        for json in table {
            assert_eq!(check(&run(&json)), Ok(()), "{json}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_field() {
        let hook = |name: &str, hook: serde_json::Value| serde_json::json!({"hooks": {name: hook}});
        let table = [
            ("run.command", serde_json::json!({"command": []})),
            ("run.stop_seconds", serde_json::json!({"stop_seconds": 3_601})),
            ("run.hooks.before_fetch.command", hook("before_fetch", serde_json::json!({"command": ["./df"]}))),
            ("run.hooks.before_fetch.command", hook("before_fetch", serde_json::json!({"command": []}))),
            ("run.hooks.after_stop.command", hook("after_stop", serde_json::json!({"command": []}))),
            (
                "run.hooks.validate.timeout_seconds",
                hook("validate", serde_json::json!({"command": ["./ok"], "timeout_seconds": 0})),
            ),
            ("run.health has more than one", serde_json::json!({"health": {"tcp": true, "http_path": "/"}})),
            ("run.health.http_path", serde_json::json!({"health": {"http_path": "health"}})),
            ("run.health.exec", serde_json::json!({"health": {"exec": [""]}})),
            ("run.health.failures", serde_json::json!({"health": {"failures": 0}})),
            ("run.health.timeout_ms", serde_json::json!({"health": {"timeout_ms": 70_000}})),
            ("run.health.grace_seconds", serde_json::json!({"health": {"grace_seconds": 100_000}})),
            ("run.environment_files", serde_json::json!({"environment_files": ["web.env"]})),
            ("run.user", serde_json::json!({"user": "a user"})),
            ("run.group", serde_json::json!({"group": ""})),
            ("run.limits.memory_mib", serde_json::json!({"limits": {"memory_mib": 0}})),
            ("run.limits.processes", serde_json::json!({"limits": {"processes": 0}})),
            ("run.log.files", serde_json::json!({"log": {"files": 0}})),
            ("run.log.file_mib times", serde_json::json!({"log": {"files": 100, "file_mib": 1000}})),
        ];
        for (field, json) in table {
            let refusal = check(&run(&json)).expect_err(field);
            assert!(refusal.starts_with(field), "{json}: {refusal}");
        }
    }
}
