//! `infra/compose/docker-compose.yml` is what docker-compose takes, and each role's environment in it is one that the role would
//! start with. No Docker is needed: the file is read and printed, and the settings are checked without connecting anywhere.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::process::binary_path;
use serde_json::Value;

/// Shows the secrets where the containers have them, to one process alone.
const IN_PLACE: &str = r#"mount -t tmpfs tmpfs /run && mkdir -p /run/longshore && cp -r "$1" /run/longshore/secrets &&
    exec "$2" config check --role "$3""#;

#[test]
fn each_role_would_start_with_its_environment() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let secrets = folder.path().join("secrets");
    let longshore = binary_path("longshore")?;
    let made = Command::new(&longshore).arg("secrets").arg(&secrets).args(["--regions", "eu,us"]).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let config = config()?;
    let services = config["services"].as_object().context("there are services")?;
    for (name, service) in services.iter().filter(|(_, service)| service["image"] == "longshore") {
        let Some(role) = role(service)? else { continue };
        let environment = environment(service)?;
        let checked = check(&longshore, &secrets, role, &environment)?;
        ensure!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        *seen.entry(role).or_default() += 1;
    }
    assert_eq!(seen, BTreeMap::from([("control", 3), ("node", 2), ("region", 4), ("worker", 1)]));

    // The check would have said so.
    let mut wrong = environment(&services["region-eu-1"])?;
    wrong.remove("LONGSHORE_KAFKA_BROKERS");
    wrong.insert("LONGSHORE_REGION_NAME".to_owned(), "mars".to_owned());
    wrong.insert("LONGSHORE_S3_PATH_STYLE".to_owned(), "maybe".to_owned());
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let checked = check(&longshore, &secrets, "region", &wrong)?;
    assert_eq!(checked.status.code(), Some(2), "{}", told(&checked));
    assert!(told(&checked).contains("LONGSHORE_S3_PATH_STYLE"), "{}", told(&checked));
    wrong.remove("LONGSHORE_S3_PATH_STYLE");
    let checked = check(&longshore, &secrets, "region", &wrong)?;
    assert_eq!(checked.status.code(), Some(2), "{}", told(&checked));
    for field in ["kafka.brokers: name some", "region.name: mars is not in regions", "2 mistakes"] {
        assert!(told(&checked).contains(field), "{} names {field}", told(&checked));
    }
    for (role, names) in [("worker", ["name", "work-dir"]), ("node", ["region-address", "host"])] {
        let checked = check(&longshore, &secrets, role, &BTreeMap::new())?;
        assert_eq!(checked.status.code(), Some(2), "{}", told(&checked));
        for name in names {
            assert!(told(&checked).contains(&format!("{name}: missing")), "{} names {name}", told(&checked));
        }
    }
    Ok(())
}

/// The file as docker-compose understands it.
fn config() -> Result<Value> {
    let file = Path::new("../../infra/compose/docker-compose.yml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new("docker-compose");
        command.arg("--file").arg(file).arg("config").args(arguments).stdin(Stdio::null());
        command.output().context("docker-compose cannot be run: infra/setup.sh compose installs it")
    };
    // The first edition, Debian's, prints YAML only, and brings Python's reader of it.
    let json = run(&["--format", "json"])?;
    if let Ok(config) = serde_json::from_slice(&json.stdout) {
        return Ok(config);
    }
    let yaml = run(&[])?;
    ensure!(yaml.status.success(), "docker-compose config: {}", String::from_utf8_lossy(&yaml.stderr));
    let printed = tempfile::NamedTempFile::new()?;
    std::fs::write(printed.path(), &yaml.stdout)?;
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let json = Command::new("/usr/bin/python3").args(["-c", script]).arg(printed.path()).output()?;
    ensure!(json.status.success(), "{}", String::from_utf8_lossy(&json.stderr));
    Ok(serde_json::from_slice(&json.stdout)?)
}

/// `None`: it is no role, but something that is done once.
fn role(service: &Value) -> Result<Option<&'static str>> {
    let first = |field: &str| service[field].get(0).and_then(Value::as_str);
    if first("entrypoint") == Some("longshore-node") {
        return Ok(Some("node"));
    }
    Ok(match first("command") {
        Some("control") => Some("control"),
        Some("region") => Some("region"),
        Some("worker") => Some("worker"),
        Some("secrets") => None,
        other => bail!("{other:?} is no role"),
    })
}

fn environment(service: &Value) -> Result<BTreeMap<String, String>> {
    let variables = service["environment"].as_object().context("it has an environment")?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(variables.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

/// Runs the check with this environment and nothing else of it.
fn check(longshore: &Path, secrets: &Path, role: &str, environment: &BTreeMap<String, String>) -> Result<Output> {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", IN_PLACE, "sh"]);
    command.arg(secrets).arg(longshore).arg(role);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(environment).stdin(Stdio::null());
    command.output().context("unshare cannot be run: infra/setup.sh mounts installs it")
}
