//! `longshore build`, `jobs`, `job`, `cancel`

use std::{path::Path, process::Command};

use longshore_schemas::{
    CommitSha, Timestamp,
    events::{BuildSpec, HealthCheck, RunSpec, StopSignal},
    http::{BuildBody, JobQuery, JobStatus, JobView, Page},
};

use super::{Context, change, follow};
use crate::{
    args::{BuildArgs, JobArgs, JobName, JobsArgs, RunningArgs, split_command},
    error::Error,
    output,
};

const STOP_SECONDS: u32 = 10;

pub(super) async fn build(context: &Context, args: &BuildArgs) -> Result<(), Error> {
    let body = match &args.file {
        Some(path) => read_body(path)?,
        None => body(args)?,
    };
    let view = change::<JobView>(context.client.post(&["builds"]).json(&body)).await?;
    if !args.follow {
        return context.show(&view, |view| view.job.to_string());
    }
    follow::follow(context, &view.job).await
}

fn read_body(path: &Path) -> Result<BuildBody, Error> {
    let text = std::fs::read(path).map_err(|error| Error::Usage(format!("{path:?} cannot be read: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::Usage(format!("{path:?} is no build request, {{\"queue\": …, \"build\": {{…}}}}: {error}"))
    })
}

fn body(args: &BuildArgs) -> Result<BuildBody, Error> {
    let missing = |flag: &str| Error::Usage(format!("{flag} is missing"));
    let run = args.run.as_deref().ok_or_else(|| missing("--run"))?;
    let (repository, commit) = source(&args.repository, &args.commit)?;
    let queue = match &args.queue {
        Some(queue) => queue.clone(),
        None => "default".parse().map_err(|error| Error::Usage(format!("{error}")))?,
    };
    let build = BuildSpec {
        name: args.name.clone().ok_or_else(|| missing("--name"))?,
        repository,
        commit,
        command: args.command.clone(),
        output: args.output_path.clone().ok_or_else(|| missing("--output-path"))?,
        environment: args.env.iter().cloned().collect(),
        time_limit_seconds: args.time_limit,
        labels: args.label.iter().cloned().collect(),
        run: run_spec(run, &args.running)?,
    };
    Ok(BuildBody { queue, build })
}

/// What nodes execute, as flags say it.
pub(super) fn run_spec(command: &str, args: &RunningArgs) -> Result<RunSpec, Error> {
    let command = split_command(command).map_err(|reason| Error::Usage(format!("--run: {reason}")))?;
    let http_path = args.health_path.clone().unwrap_or_default();
    Ok(RunSpec {
        command,
        environment: args.run_env.iter().cloned().collect(),
        health: HealthCheck { http_path, ..HealthCheck::default() },
        stop_signal: StopSignal::default(),
        stop_seconds: STOP_SECONDS,
        ..RunSpec::default()
    })
}

/// A local checkout by its full path, and the full id of what was named.
fn source(repository: &str, commit: &str) -> Result<(String, CommitSha), Error> {
    let folder = Path::new(repository);
    if folder.is_dir() {
        let path = folder.canonicalize().map_err(|error| Error::Usage(format!("{repository:?}: {error}")))?;
        let path = path.to_str().ok_or_else(|| Error::Usage(format!("{repository:?} is not UTF-8")))?.to_owned();
        if let Ok(commit) = commit.parse() {
            return Ok((path, commit));
        }
        let revision = format!("{commit}^{{commit}}");
        let id = git(&["-C", &path, "rev-parse", "--verify", "--quiet", "--end-of-options", &revision]);
        let id = id.and_then(|id| id.parse().ok());
        return match id {
            Some(id) => Ok((path, id)),
            None => Err(Error::Usage(format!("{repository:?} has no commit {commit}; is it a git checkout?"))),
        };
    }
    if let Ok(commit) = commit.parse() {
        return Ok((repository.to_owned(), commit));
    }
    let Some(listed) = git(&["ls-remote", "--quiet", "--", repository, commit, &format!("{commit}^{{}}")]) else {
        return Err(Error::Usage(format!(
            "git cannot ask {repository} what {commit} is; check the address, or give the commit's full id with --commit"
        )));
    };
    match listed_commit(&listed, commit) {
        Some(id) => Ok((repository.to_owned(), id)),
        None => Err(Error::Usage(format!(
            "{repository} has no branch or tag {commit}; give another, or a commit's full id, with --commit"
        ))),
    }
}

/// What `git ls-remote` says that a name is. It lists `feature/main` for `main` too, and for an annotated tag its own id
/// besides its commit's.
fn listed_commit(listed: &str, name: &str) -> Option<CommitSha> {
    let meanings =
        [name.to_owned(), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}"), format!("refs/heads/{name}")];
    let entries: Vec<_> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
    let entry = meanings.iter().find_map(|meaning| entries.iter().find(|(_, reference)| reference == meaning));
    entry.and_then(|(id, _)| id.parse().ok())
}

/// What git says on stdout; its complaints go to stderr as they are.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).stderr(std::process::Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) async fn jobs(context: &Context, args: JobsArgs) -> Result<(), Error> {
    let JobsArgs { queue, status, name, limit, after } = args;
    let query = JobQuery { queue, status, name, after, limit: Some(limit), ..JobQuery::default() };
    let page: Page<JobView> = context.client.get(&["jobs"]).query(&query).fetch().await?;
    context.show(&page, |page| job_table(&page.items, output::now()))?;
    output::more(page.next.as_ref());
    Ok(())
}

fn job_table(jobs: &[JobView], now: Timestamp) -> String {
    if jobs.is_empty() {
        return "no jobs; `longshore build` asks for one".to_owned();
    }
    let row = |job: &JobView| {
        vec![
            job.job.to_string(),
            output::word(&job.status),
            job.build.name.to_string(),
            job.build.commit.as_str()[..12].to_owned(),
            output::ago(job.queued_at, now),
            took(job, now),
            summary(job),
        ]
    };
    output::table(&["job", "status", "name", "commit", "queued", "took", "result"], jobs.iter().map(row).collect())
}

fn took(job: &JobView, now: Timestamp) -> String {
    // One that waits again has the start of the attempt that was lost.
    let started_at = job.started_at.filter(|_| job.status != JobStatus::Queued);
    started_at.map_or_else(|| "-".to_owned(), |start| output::duration(job.ended_at.unwrap_or(now).since(start)))
}

fn summary(job: &JobView) -> String {
    match (job.status, &job.artifact, &job.failure) {
        (JobStatus::Queued, ..) => waits(job),
        (_, Some(artifact), _) => artifact.artifact.short(),
        (_, _, Some(failure)) => format!("{}: {}", output::word(&failure.reason), output::brief(&failure.message)),
        (JobStatus::Running, ..) => {
            format!("attempt {} on {}", job.attempt, job.worker.as_ref().map_or("?", |worker| worker.as_str()))
        }
        _ => "-".to_owned(),
    }
}

fn waits(job: &JobView) -> String {
    match job.ahead {
        Some(0) => "next".to_owned(),
        Some(ahead) => format!("{ahead} ahead"),
        None => "waits".to_owned(),
    }
}

pub(super) async fn job(context: &Context, args: &JobArgs) -> Result<(), Error> {
    let view = context.find_job(&args.job.job).await?;
    if args.follow {
        return follow::follow(context, &view.job).await;
    }
    context.show(&view, |view| job_text(view, output::now()))
}

fn job_text(job: &JobView, now: Timestamp) -> String {
    let mut lines = vec![
        ("job", job.job.to_string()),
        ("status", output::word(&job.status)),
        ("name", job.build.name.to_string()),
        ("repository", job.build.repository.clone()),
        ("commit", job.build.commit.to_string()),
        ("command", output::command(&job.build.command)),
        ("queued", output::ago(job.queued_at, now)),
        ("took", took(job, now)),
    ];
    if let Some(worker) = &job.worker {
        lines.push(("attempt", format!("{} on {worker}", job.attempt)));
    }
    if job.status == JobStatus::Queued {
        lines.push(("place", format!("{}; workers of the queue {} take it", waits(job), job.job.queue)));
    }
    if let Some(artifact) = &job.artifact {
        let (size, new) = (output::size(artifact.size_bytes), output::size(artifact.new_pack_bytes));
        lines.push(("artifact", format!("{} ({size} in {} files, {new} new)", artifact.artifact, artifact.files)));
    }
    if let Some(failure) = &job.failure {
        lines.push(("failure", format!("{}: {}", output::word(&failure.reason), failure.message)));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<11} {value}")).collect::<Vec<_>>().join("\n")
}

pub(super) async fn cancel(context: &Context, args: &JobName) -> Result<(), Error> {
    let view = context.find_job(&args.job).await?;
    let call = context.client.post(&["jobs", &view.job.to_string(), "cancel"]);
    let view = change::<JobView>(call).await?;
    context.show(&view, |view| format!("{} is {}", view.job, output::word(&view.status)))
}

#[cfg(test)]
mod tests {
    use longshore_schemas::{events::FailureReason, http::JobFailure};

    use super::*;

    fn view(number: u64, status: JobStatus) -> JobView {
        let build = serde_json::json!({
            "name": "web", "repository": "https://example.org/web", "commit": "0123456789".repeat(4),
            "command": ["make", "web"], "output": "web", "run": {"command": ["./web"]},
        });
        let queued_at = Timestamp(1_000_000);
        let started_at = (status != JobStatus::Queued).then_some(Timestamp(1_012_000));
        JobView {
            job: format!("default-{number}").parse().expect("a job"),
            status,
            build: serde_json::from_value(build).expect("a build"),
            attempt: u32::from(started_at.is_some()),
            worker: started_at.map(|_| "w-1".parse().expect("a worker")),
            queued_at,
            started_at,
            ended_at: status.is_ended().then_some(Timestamp(1_042_000)),
            ahead: (status == JobStatus::Queued).then_some(2),
            artifact: None,
            failure: (status == JobStatus::Failed).then(|| JobFailure {
                reason: FailureReason::CommandFailed,
                message: "\"make\" ended\nlines".to_owned(),
            }),
        }
    }

    #[test]
    fn jobs_are_a_table() {
        let jobs = [view(12, JobStatus::Queued), view(11, JobStatus::Running), view(9, JobStatus::Failed)];
        let expected = "\
JOB         STATUS   NAME  COMMIT        QUEUED         TOOK  RESULT
default-12  queued   web   012345678901  1 min 40 s ago  -     2 ahead
default-11  running  web   012345678901  1 min 40 s ago  1 min 28 s  attempt 1 on w-1
default-9   failed   web   012345678901  1 min 40 s ago  30 s  command failed: \"make\" ended…";
        let shown = job_table(&jobs, Timestamp(1_100_000));
        let words = |text: &str| {
            text.lines().map(|l| l.split_whitespace().map(str::to_owned).collect()).collect::<Vec<Vec<_>>>()
        };
        assert_eq!(words(&shown), words(expected), "{shown}");
        assert!(job_table(&[], Timestamp(0)).starts_with("no jobs"));
    }

    #[test]
    fn a_name_is_what_git_means_by_it() {
        let ids = ["1", "2", "3", "4"].map(|digit| digit.repeat(40));
        let listed = format!(
            "{}\trefs/heads/feature/main\n{}\trefs/heads/main\n{}\trefs/tags/v1\n{}\trefs/tags/v1^{{}}",
            ids[0], ids[1], ids[2], ids[3]
        );
        let commit = |name: &str| listed_commit(&listed, name).map(|id| id.to_string());
        assert_eq!(commit("main").as_ref(), Some(&ids[1]));
        assert_eq!(commit("refs/heads/main").as_ref(), Some(&ids[1]));
        assert_eq!(commit("v1").as_ref(), Some(&ids[3]));
        assert_eq!(commit("other"), None);
    }

    #[test]
    fn a_failed_job_says_why() {
        let text = job_text(&view(9, JobStatus::Failed), Timestamp(1_100_000));
        assert!(text.contains("failure     command failed: \"make\" ended\nlines"), "{text}");
        assert!(text.contains("took        30 s"), "{text}");
    }
}
