//! `longshore doctor`: looks at everything that a person would look at, and says what to do about what is wrong.
//!
//! ```text
//! this machine ─┐
//! the server    ├─▶ one line each: ok, warn or FAIL; what was found; what to do ─▶ exit code 1 if anything failed
//! what it runs ─┘
//! ```
//!
//! It never stops at the first trouble: without a server, what can be said of this machine is said all the same.

use std::time::{Duration, Instant};

use longshore_schemas::{
    Timestamp,
    events::ReplicaStatus,
    http::{
        ArtifactStatus, ArtifactView, CheckState, CheckView, Identity, JobStatus, JobView, NodeView, PAGE_ITEMS_MAX,
        Page, QueueView, Role, RolloutStatus, ServiceView,
    },
};
use longshore_worker::client::{self, Client};
use rustix::process::{Resource, getrlimit};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    args::Connection,
    defaults::{Speaker, Target, UpFile},
    error::Error,
    output::{self, Format},
};

/// Clocks further apart than this, and than this.
const SKEW_WARN_SECONDS: u64 = 5;
const SKEW_FAIL_SECONDS: u64 = 60;
/// An answer slower than this is worth a word.
const SLOW: Duration = Duration::from_secs(1);
/// What takes longer than this is worth a look.
const ROLLOUT_SLOW: Duration = Duration::from_secs(30 * 60);
const REPLICATION_SLOW: Duration = Duration::from_secs(15 * 60);
const UNCLAIMED: Duration = Duration::from_secs(60);
/// Of many things alike, so many are named.
const NAMED_MAX: usize = 5;
/// Fewer open files than this are soon too few.
const FILES_MIN: u64 = 1_024;

#[derive(Serialize)]
struct Found {
    checks: Vec<CheckView>,
    /// The worst of them.
    state: CheckState,
}

pub(super) async fn run(connection: &Connection, format: Format) -> Result<(), Error> {
    let mut checks = machine();
    server(connection, &mut checks).await;
    let state = checks.iter().map(|check| check.state).max().unwrap_or(CheckState::Ok);
    let failed = checks.iter().filter(|check| check.state == CheckState::Fail).count();
    let found = Found { checks, state };
    match format {
        Format::Json => output::json(&found)?,
        Format::Table => output::data(&text(&found.checks))?,
    }
    match failed {
        0 => Ok(()),
        1 => Err(Error::Failed("1 check failed".to_owned())),
        failed => Err(Error::Failed(format!("{failed} checks failed"))),
    }
}

/// A line for each: state, check, what was found, and what to do.
fn text(checks: &[CheckView]) -> String {
    let width = checks.iter().map(|check| check.check.chars().count()).max().unwrap_or(0);
    let line = |check: &CheckView| {
        let state = match check.state {
            CheckState::Ok => "ok",
            CheckState::Warn => "warn",
            CheckState::Fail => "FAIL",
        };
        let advice = check.advice.as_ref().map(|advice| format!(" → {advice}")).unwrap_or_default();
        // One line each, whatever a server puts into its errors.
        let says = check.says.replace('\n', " ");
        format!("{state:<5} {:<width$}  {says}{advice}", check.check)
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What a worker on this machine would need.
fn machine() -> Vec<CheckView> {
    let git = std::process::Command::new("git").arg("--version").output();
    let git = match git {
        Ok(output) if output.status.success() => {
            CheckView::ok("git", String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => CheckView::warn("git", "it cannot be started", "install it where workers run, and where you build from"),
    };
    let guard = match std::fs::File::open("/proc/self/exe") {
        Ok(_) => CheckView::ok("build guard", "it is part of this program"),
        Err(error) => CheckView::warn(
            "build guard",
            format!("/proc/self/exe: {error}"),
            "a worker here could not end its builds: mount /proc",
        ),
    };
    let files = match getrlimit(Resource::Nofile).current {
        Some(files) if files < FILES_MIN => CheckView::warn(
            "open files here",
            format!("at most {files}"),
            "raise `ulimit -n` before a server or worker is started from this shell",
        ),
        files => CheckView::ok(
            "open files here",
            files.map_or_else(|| "without a limit".to_owned(), |files| format!("at most {files}")),
        ),
    };
    vec![git, guard, files]
}

/// The server: is it there, who are we, how is it, and how is what it runs.
async fn server(connection: &Connection, checks: &mut Vec<CheckView>) {
    let up_file = UpFile::read(&connection.data);
    if let Err(error) = &up_file {
        checks.push(CheckView::fail("up.json", error.to_string(), "start `longshore up` again, or give --api"));
        if connection.api.is_none() {
            return;
        }
    }
    let found = Target::find(connection, Speaker::Person).and_then(|target| {
        let has_token = target.token.is_some();
        Ok((target.client()?, has_token))
    });
    let (client, has_token) = match found {
        Ok(found) => found,
        Err(error) => {
            checks.push(CheckView::fail("server", error.to_string(), "check --api, --token-file and --data"));
            return;
        }
    };
    let guessed = connection.api.is_none() && matches!(up_file, Ok(Some(_)));
    if !reach(&client, guessed, checks).await {
        return;
    }
    if !token(&client, has_token, checks).await {
        return;
    }
    match ask::<Page<CheckView>>(&client, &["checks"], &()).await {
        Ok(page) => checks.extend(page.items),
        Err(check) => checks.push(check),
    }
    let now = output::now();
    checks.push(look(&client, "nodes", |page: Page<NodeView>| nodes(&page.items, page.next.is_some())).await);
    checks.push(look(&client, "services", |page: Page<ServiceView>| rollouts(&page.items, now)).await);
    checks.push(look(&client, "artifacts", |page: Page<ArtifactView>| replication(&page.items, now)).await);
    checks.push(queues(&client, now).await);
}

async fn reach(client: &Client, from_file: bool, checks: &mut Vec<CheckView>) -> bool {
    let begun = Instant::now();
    let response = match client.get(&["health"]).timeout(Duration::from_secs(10)).stream().await {
        Ok(response) => response,
        Err(error) => {
            let advice = if from_file {
                "up.json is of a `longshore up` that is gone: look at its log, and start it again"
            } else {
                "start `longshore up`, or name yours with --api or --data"
            };
            checks.push(CheckView::fail("server", error.to_string(), advice));
            return false;
        }
    };
    let took = begun.elapsed();
    let says = format!("{} answers in {} ms", client.base(), took.as_millis());
    checks.push(if took > SLOW {
        CheckView::warn("server", says, "it is slow: look at its load and at the metrics")
    } else {
        CheckView::ok("server", says)
    });
    let date = response.headers().get("date").and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    checks.push(match date {
        Some(date) => clock(Timestamp(date.timestamp().as_millisecond()), output::now()),
        None => CheckView::warn("clock", "the server does not say what time it is", "compare the clocks by hand"),
    });
    true
}

/// The server's second may be nearly over.
fn clock(theirs: Timestamp, ours: Timestamp) -> CheckView {
    let skew = ours.since(theirs).max(theirs.since(ours)).as_secs().saturating_sub(1);
    let advice = "set the clocks right, on both machines (such as with chrony): times shown and leases depend on them";
    let says = format!("{skew} s apart from the server's");
    match skew {
        SKEW_FAIL_SECONDS.. => CheckView::fail("clock", says, advice),
        SKEW_WARN_SECONDS.. => CheckView::warn("clock", says, advice),
        _ => CheckView::ok("clock", "the same as the server's"),
    }
}

async fn token(client: &Client, has_token: bool, checks: &mut Vec<CheckView>) -> bool {
    if !has_token {
        let advice = "give one with --token-file, LONGSHORE_TOKEN_FILE, or --data of the `longshore up`";
        checks.push(CheckView::fail("token", "there is none, so nothing more can be asked", advice));
        return false;
    }
    match ask::<Identity>(client, &["whoami"], &()).await {
        Ok(Identity { subject, role }) => {
            let says = format!("{subject}, with the role {}", output::word(&role));
            let reads = role <= Role::Admin;
            checks.push(if reads {
                CheckView::ok("token", says)
            } else {
                CheckView::warn("token", says, "it may not read; give a token of a viewer or higher to see the rest")
            });
            reads
        }
        Err(mut check) => {
            check.check = "token".to_owned();
            checks.push(check);
            false
        }
    }
}

async fn ask<T: DeserializeOwned>(client: &Client, path: &[&str], query: &impl Serialize) -> Result<T, CheckView> {
    let asked = client.get(path).query(query).fetch().await;
    asked.map_err(|error: client::Error| {
        let advice = match error.status() {
            Some(401) => "the token is not of this installation: give another",
            Some(403) => "give a token of a viewer or higher",
            Some(404) => "the server is of another version than this program",
            Some(429 | 503) => {
                "the server has no room for this now; try again, and look at longshore_limit_refused_total"
            }
            _ => "the server's log says more",
        };
        CheckView::fail(path.join("/"), error.to_string(), advice)
    })
}

async fn look<T: DeserializeOwned>(client: &Client, path: &str, judge: impl FnOnce(T) -> CheckView) -> CheckView {
    let all = [("limit", PAGE_ITEMS_MAX)];
    // Services and queues are always whole, and take no limit.
    let query: &[(&str, u32)] = if matches!(path, "nodes" | "artifacts") { &all } else { &[] };
    ask(client, &[path], &query).await.map_or_else(|check| check, judge)
}

fn some(names: impl IntoIterator<Item = String>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    let named = names[..names.len().min(NAMED_MAX)].join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

fn nodes(nodes: &[NodeView], more: bool) -> CheckView {
    let lost: Vec<_> = nodes.iter().filter(|node| node.lost).collect();
    let seen = if more { format!("the first {}", nodes.len()) } else { nodes.len().to_string() };
    if lost.is_empty() {
        return CheckView::ok("nodes", format!("{seen}, none lost"));
    }
    let names = some(lost.iter().map(|node| format!("{} ({})", node.node, node.region)));
    CheckView::warn(
        "nodes",
        format!("{} of {seen} are lost: {names}", lost.len()),
        "their services go on; look whether the machine is up and what its agent's log says",
    )
}

fn rollouts(services: &[ServiceView], now: Timestamp) -> CheckView {
    let mut stuck = Vec::new();
    for view in services {
        let Some(newest) = view.revisions.first() else { continue };
        let age = now.since(newest.requested_at);
        let reason = newest.reason.as_deref().map(|reason| format!(": {}", output::brief(reason))).unwrap_or_default();
        match newest.status {
            RolloutStatus::Halted | RolloutStatus::Paused => {
                stuck.push(format!("{} is {}{reason}", view.service, output::word(&newest.status)));
            }
            RolloutStatus::Rolling | RolloutStatus::Pending if age > ROLLOUT_SLOW => {
                stuck.push(format!(
                    "{} is {} for {}",
                    view.service,
                    output::word(&newest.status),
                    output::duration(age)
                ));
            }
            _ => {}
        }
    }
    if stuck.is_empty() {
        return CheckView::ok("rollouts", format!("{} services, none stuck", services.len()));
    }
    CheckView::warn("rollouts", some(stuck), "`longshore status SERVICE` says where; then resume, or roll back")
}

fn replication(artifacts: &[ArtifactView], now: Timestamp) -> CheckView {
    let slow = |view: &&ArtifactView| {
        let failed = view.replicas.iter().any(|replica| replica.status == Some(ReplicaStatus::Failed));
        view.status == ArtifactStatus::Replicating && (failed || now.since(view.built_at) > REPLICATION_SLOW)
    };
    let stuck: Vec<_> = artifacts.iter().filter(slow).collect();
    if stuck.is_empty() {
        return CheckView::ok("replication", "no artifact waits for long");
    }
    let name = |view: &&ArtifactView| {
        let error = view.replicas.iter().find_map(|replica| replica.error.as_deref());
        let error = error.map(|error| format!(": {}", output::brief(error))).unwrap_or_default();
        format!("{} {}{error}", view.summary.name, view.summary.artifact.short())
    };
    CheckView::warn(
        "replication",
        format!("not in every region: {}", some(stuck.iter().map(name))),
        "`longshore artifact` shows which region lacks it; look at that region's bucket",
    )
}

async fn queues(client: &Client, now: Timestamp) -> CheckView {
    let queues: Page<QueueView> = match ask(client, &["queues"], &()).await {
        Ok(page) => page,
        Err(check) => return check,
    };
    let jobs = [("status", "queued"), ("limit", "1000")];
    let waiting: Page<JobView> = match ask(client, &["jobs"], &jobs).await {
        Ok(page) => page,
        Err(check) => return check,
    };
    unclaimed(&queues.items, &waiting.items, now)
}

fn unclaimed(queues: &[QueueView], waiting: &[JobView], now: Timestamp) -> CheckView {
    let is_unclaimed = |queue: &&QueueView| {
        let waits = |job: &&JobView| job.job.queue == queue.queue && job.status == JobStatus::Queued;
        let oldest = waiting.iter().filter(waits).map(|job| job.queued_at).min();
        queue.running == 0 && queue.queued > 0 && oldest.is_some_and(|at| now.since(at) > UNCLAIMED)
    };
    let stuck: Vec<_> = queues.iter().filter(is_unclaimed).collect();
    let (queued, running) =
        queues.iter().fold((0, 0), |(queued, running), queue| (queued + queue.queued, running + queue.running));
    if stuck.is_empty() {
        return CheckView::ok("queues", format!("{queued} jobs wait, {running} run"));
    }
    let names = some(stuck.iter().map(|queue| format!("{} ({} jobs)", queue.queue, queue.queued)));
    CheckView::warn("queues", format!("no worker takes the jobs of {names}"), "start one: `longshore worker --queue …`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_one_line_with_what_to_do() {
        let checks = [
            CheckView::ok("git", "git version 2"),
            CheckView::fail("bucket eu", "no answer\nat all", "look at it"),
            CheckView::warn("nodes", "1 of 3 is lost", "look at the machine"),
        ];
        let expected = "\
ok    git        git version 2
FAIL  bucket eu  no answer at all → look at it
warn  nodes      1 of 3 is lost → look at the machine";
        assert_eq!(text(&checks), expected);
    }

    #[test]
    fn clocks_may_be_a_second_or_two_apart() {
        let state = |theirs, ours| clock(Timestamp(theirs), Timestamp(ours)).state;
        assert_eq!(state(10_000, 11_900), CheckState::Ok);
        assert_eq!(state(10_000, 20_000), CheckState::Warn);
        assert_eq!(state(3_600_000, 1_000), CheckState::Fail);
    }

    #[test]
    fn many_names_are_cut_short() {
        assert_eq!(some(["a".to_owned()]), "a");
        assert_eq!(some((1..8).map(|n| n.to_string())), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn jobs_that_nobody_takes_are_seen() {
        let queue = |queued, running| QueueView { queue: "q".parse().expect("valid"), queued, running };
        let job = |queued_at: i64| -> JobView {
            let view = serde_json::json!({
                "job": "q-1", "status": "queued", "attempt": 0, "queued_at": Timestamp(queued_at).to_string(),
                "build": {"name": "web", "repository": "https://example.org/web", "commit": "0123456789".repeat(4),
                    "command": ["make"], "output": "web", "run": {"command": ["./web"]}},
            });
            serde_json::from_value(view).expect("a job")
        };
        let now = Timestamp(100_000);
        assert_eq!(unclaimed(&[queue(1, 0)], &[job(10_000)], now).state, CheckState::Warn);
        assert_eq!(unclaimed(&[queue(1, 0)], &[job(90_000)], now).state, CheckState::Ok, "it has just come");
        assert_eq!(unclaimed(&[queue(1, 1)], &[job(10_000)], now).state, CheckState::Ok, "the workers are busy");
    }
}
