//! Everybody else's tools on a real cluster: programs in Python and Node.js, which know only the topics and the registry, ask for
//! builds and follow them to the end; what others publish that makes no sense becomes dead letters, and kcat reads the topics.
//! Control registers the schemas with a registry of the installation's own (Apicurio), where one of the programs finds them.
//!
//! `infra/setup.sh foreign apicurio` installs what they need. They are the examples of `infra/docs/producing.md`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Client, Process,
    apart::{Apart, Layout},
    path_text,
    process::{free_ports, wait_for},
    quick::Quick,
};
use longshore_schemas::{
    CommitSha, codec,
    http::{DeadLetterView, JobStatus, Page},
    topics,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

const BOUND: Duration = Duration::from_secs(120);
const MISSING: &str = "it cannot be started: infra/setup.sh foreign installs it";

/// What the examples print.
#[derive(Debug, Deserialize)]
struct Told {
    request: String,
    outcome: String,
    event: Value,
}

struct World {
    apart: Apart,
    brokers: String,
    /// The one of the installation's own.
    apicurio: longshore_kafka::Apicurio,
    repository: PathBuf,
    commit: CommitSha,
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_others_publish_builds_and_follow_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = folder.path().join("repository");
    let commit = Quick::create(&repository)?.commit("one")?;
    let kafka = spawn_blocking(|| longshore_kafka::Cluster::start(&longshore_kafka::Config::new(1))).await??;
    let apicurio = spawn_blocking(longshore_kafka::Apicurio::start).await??;
    let set = vec![format!("schema_registry.url={}", apicurio.url())];
    let layout = Layout { controls: 1, processes_per_region: 1, set, ..Layout::new(&["eu"], 1) };
    let mut apart = Apart::start(folder.path(), kafka.brokers(), layout).await?;
    apart.start_workers(1)?;
    let world = World { apart, brokers: kafka.brokers().to_owned(), apicurio, repository, commit };
    let result = play(&world).await;
    if result.is_err() {
        // The test's output is shown when it fails.
        eprintln!("{}", world.apart.log_ends());
    }
    result?;
    let World { mut apart, .. } = world;
    apart.stop()
}

async fn play(world: &World) -> Result<()> {
    let served = format!("http://{}/registry", world.apart.controls[0].address);
    schemas_are_registered(world).await?;
    garbage_becomes_dead_letters(world, &served).await?;
    // After it, on the same partition.
    built(world, (python("build.py")?, &served), "python").await?;
    built(world, (node("build.mjs"), &world.apicurio.url()), "node").await?;
    refused(world, (python("build.py")?, &served))?;
    refused(world, (node("build.mjs"), &served))?;
    kcat_reads(world)?;
    a_registry_that_cannot_be_used_is_said(world).await
}

/// Each by the id that our records carry.
async fn schemas_are_registered(world: &World) -> Result<()> {
    let registry = Client::new(&world.apicurio.url(), "")?;
    for version in &codec::SCHEMAS {
        let found: Value = registry.get(&format!("/schemas/ids/{}", version.id)).await?;
        let found: Value = serde_json::from_str(found["schema"].as_str().context("a schema")?)?;
        ensure!(found == serde_json::from_str::<Value>(version.json)?, "{found} is not {}", version.topic);
        let path = format!("/subjects/longshore.{}-value/versions/{}", version.topic, version.version);
        let registered: Value = registry.get(&path).await?;
        ensure!(registered["id"] == version.id, "{registered}");
    }
    Ok(())
}

/// Waited for if it is not there, as anything else that a role stands on; refused if it holds what is not ours.
async fn a_registry_that_cannot_be_used_is_said(world: &World) -> Result<()> {
    let nobody = format!("http://127.0.0.1:{}", free_ports(1)?);
    let mut waiting = control(world, "waiting", &nobody, "longshore.")?;
    wait_for("control to say that there is no registry", BOUND, async || {
        waiting.check_running()?;
        let said = waiting.log_text();
        Ok((said.contains("the schema registry cannot be used yet") && said.contains(&nobody)).then_some(()))
    })
    .await?;
    waiting.terminate()?;
    waiting.wait_ended(BOUND)?;

    // Subjects are named after topics, and this one is another's.
    let (http, registry) = (reqwest::Client::new(), world.apicurio.url());
    let foreign = json!({ "type": "record", "name": "Other", "fields": [{ "name": "x", "type": "int" }] });
    let add = http.post(format!("{registry}/subjects/taken.build-requests-value/versions"));
    add.json(&json!({ "schema": foreign.to_string() })).send().await?.error_for_status()?;
    let level = http.put(format!("{registry}/config/taken.build-requests-value"));
    level.json(&json!({ "compatibility": "BACKWARD" })).send().await?.error_for_status()?;
    let mut refused = control(world, "refused", &registry, "taken.")?;
    wait_for("control to refuse to start", BOUND, async || Ok(refused.check_running().is_err().then_some(()))).await?;
    let said = refused.log_text();
    let expected = "schema_registry.url: subject taken.build-requests-value of the schema registry holds schemas";
    ensure!(said.contains(expected), "{said}");
    Ok(())
}

/// One more control node, with another registry or prefix.
fn control(world: &World, name: &str, registry: &str, prefix: &str) -> Result<Process> {
    let folder = &world.apart.folder;
    let (config, data) = (folder.join("longshore.toml"), folder.join(name));
    let listen = format!("api.listen=127.0.0.1:{}", free_ports(1)?);
    let (registry, prefix) = (format!("schema_registry.url={registry}"), format!("kafka.prefix={prefix}"));
    let mut arguments = vec!["control", "--config", path_text(&config)?, "--data", path_text(&data)?];
    for set in [&listen, &registry, &prefix] {
        arguments.extend(["--set", set]);
    }
    Process::start("longshore", &arguments, &folder.join(format!("{name}.log")))
}

/// A build that another program asked for is a job like any, and the program saw its end.
async fn built(world: &World, program: (Command, &str), by: &str) -> Result<()> {
    let (told, code) = run_build(world, program)?;
    ensure!(told.outcome == "BuildSucceeded" && code == 0, "{told:?}");
    let job = told.event["job"].as_str().context("a job")?.parse()?;
    let view = world.apart.client.job_ended(&job, BOUND).await?;
    ensure!(view.status == JobStatus::Succeeded, "{view:?}");
    ensure!(view.build.labels.get("asked-by").map(String::as_str) == Some(by), "{view:?}");
    let artifact = view.artifact.as_ref().context("an artifact")?.artifact.to_string();
    ensure!(told.event["artifact"]["artifact"] == artifact.as_str(), "{told:?} is not {view:?}");
    Ok(())
}

/// What a processor refuses, it says in its facts.
fn refused(world: &World, (mut command, registry): (Command, &str)) -> Result<()> {
    command.args(["--output", "/elsewhere"]);
    let (told, code) = run_build(world, (command, registry))?;
    ensure!(told.outcome == "refused" && code == 3, "{told:?}");
    ensure!(told.event["reason"].as_str().is_some_and(|reason| reason.contains("output")), "{told:?}");
    ensure!(!told.request.is_empty());
    Ok(())
}

fn run_build(world: &World, (mut command, registry): (Command, &str)) -> Result<(Told, i32)> {
    let repository = format!("file://{}", path_text(&world.repository)?);
    let commit = world.commit.to_string();
    let script = "mkdir -p out && cp server version.txt out/";
    command.args(["--repository", &repository, "--commit", &commit, "--script", script, "--seconds", "90"]);
    let (output, code) = run(world, command, registry)?;
    let told = serde_json::from_str(&output).with_context(|| format!("it printed {output:?}"))?;
    Ok((told, code))
}

async fn garbage_becomes_dead_letters(world: &World, registry: &str) -> Result<()> {
    let (output, code) = run(world, python("garbage.py")?, registry)?;
    ensure!(code == 0, "{output}");
    let published: Vec<(String, u32, u64)> = serde_json::from_str(&output)?;
    ensure!(published.len() == 15, "{published:?}");
    let path = "/v1/dead-letters?limit=100";
    let letters = wait_for("every piece of garbage to be a dead letter", BOUND, async || {
        let page: Page<DeadLetterView> = world.apart.client.get(path).await?;
        Ok((page.items.len() >= published.len()).then_some(page.items))
    })
    .await?;
    for (what, partition, offset) in &published {
        let of = |letter: &&DeadLetterView| {
            letter.topic == topics::BUILD_REQUESTS.name && (letter.partition, letter.record) == (*partition, *offset)
        };
        let found: Vec<_> = letters.iter().filter(of).collect();
        ensure!(found.len() == 1 && !found[0].error.is_empty(), "{what}: {found:?} of {letters:?}");
    }
    Ok(())
}

fn kcat_reads(world: &World) -> Result<()> {
    let kcat = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("kcat").args(["-b", &world.brokers]).args(arguments).output();
        let output = output.with_context(|| format!("kcat: {MISSING}"))?;
        ensure!(output.status.success(), "kcat {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let listed = kcat(&["-L"])?;
    for topic in topics::ALL {
        let line = format!("topic \"longshore.{}\" with {} partitions", topic.name, topic.partitions);
        ensure!(listed.contains(&line), "{line} is not in {listed}");
    }
    // -e: until the ends. What follows the header are Avro's bytes: keys and sizes are enough here.
    let keys = kcat(&["-C", "-t", "longshore.build-requests", "-o", "beginning", "-e", "-q", "-f", "%k %S\n"])?;
    ensure!(keys.lines().filter(|line| line.starts_with("default ")).count() >= 4, "{keys}");
    let facts = kcat(&["-C", "-t", "longshore.builds", "-o", "beginning", "-e", "-q", "-s", "value=b", "-f", "%s\n"])?;
    ensure!(facts.lines().all(|magic| magic.trim() == "0") && facts.lines().count() >= 4, "{facts}");
    Ok(())
}

/// Standard output, and the exit code.
fn run(world: &World, mut command: Command, registry: &str) -> Result<(String, i32)> {
    command.args(["--brokers", &world.brokers, "--registry", registry]);
    let output = command.output().with_context(|| format!("{command:?}: {MISSING}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().with_context(|| format!("{command:?}: {}: {said}", output.status))?;
    ensure!(!output.stdout.is_empty(), "{command:?} ended with {code}: {said}");
    Ok((String::from_utf8(output.stdout)?, code))
}

fn folder(name: &str) -> PathBuf {
    Path::new("../foreign").join(name)
}

/// A program in the environment that `infra/setup.sh foreign` makes.
fn python(program: &str) -> Result<Command> {
    let cache = match std::env::var_os("LONGSHORE_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is set")?).join(".cache/longshore"),
    };
    let mut command = Command::new(cache.join("foreign/venv/bin/python"));
    command.arg(folder("python").join(program));
    Ok(command)
}

fn node(program: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(folder("node").join(program));
    command
}
