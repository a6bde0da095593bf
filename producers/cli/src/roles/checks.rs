//! What a process with an API can say of itself when someone asks what is wrong: `GET /v1/checks`, for `longshore doctor`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use longshore_api::{Checks, NotAccepted};
use longshore_control::{AcceptError, Control, Health, Lost, Role, chain, role_name, snapshots::SnapshotState};
use longshore_log::{Log, TopicPartition};
use longshore_region::Connections;
use longshore_s3::Bucket;
use longshore_schemas::{
    RegionName,
    http::{AcceptedLossView, CheckView},
    topics,
};
use rustix::process::{Resource, getrlimit};

use crate::output;

/// Requests that may wait before it is worth a word.
const LAG_MAX: u64 = 1_000;
const BUCKET_TIMEOUT: Duration = Duration::from_secs(3);
/// Below these, free space is a warning or a failure.
const DISK_WARN_BYTES: u64 = 5 * 1024 * 1024 * 1024;
const DISK_FAIL_BYTES: u64 = 512 * 1024 * 1024;
/// Of the files that may be open, in percent.
const FILES_WARN: u64 = 70;
const FILES_FAIL: u64 = 95;

pub(crate) struct RoleChecks {
    pub(crate) control: Arc<Control>,
    /// Whether no other process leads partitions: then each must be led here.
    pub(crate) alone: bool,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) data: PathBuf,
    pub(crate) buckets: Vec<(String, Bucket)>,
    pub(crate) regions: Vec<(RegionName, Connections)>,
}

#[async_trait]
impl Checks for RoleChecks {
    async fn checks(&self) -> Vec<CheckView> {
        let mut checks = processors(&self.control.health().await, self.alone);
        checks.push(snapshots(self.control.snapshots()));
        checks.push(self.dead_letters().await);
        checks.push(self.disk());
        checks.push(open_files());
        for (name, bucket) in &self.buckets {
            checks.push(reachable(name, bucket).await);
        }
        for (region, connections) in &self.regions {
            let says = format!("nodes connected: {}", connections.count());
            checks.push(CheckView::ok(format!("region {region}"), says));
        }
        checks
    }

    async fn accept_loss(&self, loss: &AcceptedLossView) -> Result<(), NotAccepted> {
        let AcceptedLossView { processor, partition, from, to, by } = loss;
        let accepted = self.control.accept_loss(processor, *partition, Lost { from: *from, to: *to }, by).await;
        match accepted {
            None => Err(NotAccepted::NoPartition(format!(
                "there is no processor {processor:?}: name queue, replication, goals or fleet"
            ))),
            Some(Ok(())) => Ok(()),
            Some(Err(error @ AcceptError::NoPartition { .. })) => Err(NotAccepted::NoPartition(error.to_string())),
            Some(Err(error @ AcceptError::Refused(_))) => Err(NotAccepted::Other(error.to_string())),
            Some(Err(error)) => Err(NotAccepted::Unavailable(chain(&error))),
        }
    }
}

impl RoleChecks {
    async fn dead_letters(&self) -> CheckView {
        let check = "dead letters";
        match self.log.end_offset(&TopicPartition::new(topics::DEAD_LETTERS.name, 0)).await {
            Ok(0) => CheckView::ok(check, "none"),
            // Kafka counts the ends of transactions too.
            Ok(end) if !self.alone => CheckView::warn(
                check,
                format!("there are some, fewer than {end}"),
                "each was set aside and changed nothing; the servers' logs name it and say why",
            ),
            Ok(count) => CheckView::warn(
                check,
                format!("{count} records could not be processed, ever"),
                "each was set aside and changed nothing; the server's log names it and says why",
            ),
            Err(error) => {
                CheckView::fail(check, format!("the log does not answer: {error}"), "look at the server's log and disk")
            }
        }
    }

    fn disk(&self) -> CheckView {
        let check = "disk";
        let path = self.data.display();
        let stat = match rustix::fs::statvfs(&self.data) {
            Ok(stat) => stat,
            Err(error) => return CheckView::warn(check, format!("{path}: {error}"), "look at the file system"),
        };
        let (free, all) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
        let says = format!("{path} has {} free of {}", output::size(free), output::size(all));
        let advice = "make room: when it is full, nothing is acknowledged any more until there is space";
        match free {
            ..DISK_FAIL_BYTES => CheckView::fail(check, says, advice),
            DISK_FAIL_BYTES..DISK_WARN_BYTES => CheckView::warn(check, says, advice),
            _ => CheckView::ok(check, says),
        }
    }
}

/// One line for each processor, or for each of its partitions that is not well.
fn processors(health: &[Health], alone: bool) -> Vec<CheckView> {
    let mut checks = Vec::new();
    let mut names: Vec<_> = health.iter().map(|health| health.processor).collect();
    names.dedup();
    for name in names {
        let of: Vec<_> = health.iter().filter(|health| health.processor == name).collect();
        let unwell: Vec<_> = of.iter().filter_map(|health| unwell(health, alone)).collect();
        if unwell.is_empty() {
            let lag: u64 = of.iter().filter_map(|health| health.lag).sum();
            let led = of.iter().filter(|health| health.status.role == Role::Leading).count();
            let led = if led == of.len() { "led here".to_owned() } else { format!("{led} of them led here") };
            let says = format!("{} partitions, {led}; {lag} requests wait", of.len());
            checks.push(CheckView::ok(format!("processor {name}"), says));
        }
        checks.extend(unwell);
    }
    checks
}

/// How far back a new process would have to read.
fn snapshots(state: SnapshotState) -> CheckView {
    let check = "snapshots";
    let last = state.written.map_or_else(
        || "none written since the start".to_owned(),
        |written| format!("the last one is of {}, with {} facts", written.at, written.facts),
    );
    match state.error {
        None => CheckView::ok(check, last),
        Some(error) => CheckView::warn(
            check,
            format!("{error}; {last}"),
            "nothing is lost, but without a snapshot a new control node reads all facts: look at the main bucket and the disk",
        ),
    }
}

fn unwell(health: &Health, alone: bool) -> Option<CheckView> {
    let check = format!("processor {}/{}", health.processor, health.partition);
    let lag = health.lag.unwrap_or(0);
    let error = health.status.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let says = format!("{}{error}; {lag} requests wait", role_name(health.status.role));
    match health.status.role {
        Role::Halted => Some(CheckView::fail(
            check,
            says,
            "it stays so until a person acts, as it says; if a fact cannot be applied, run `longshore log verify`, keep the data, \
             and call for help",
        )),
        Role::Leading if lag > LAG_MAX => {
            Some(CheckView::warn(check, says, "it is behind: look whether the number falls, and at the disk's speed"))
        }
        Role::Following if !alone && lag > LAG_MAX => Some(CheckView::warn(
            check,
            says,
            "its leader is behind, or no control node leads it: look at their logs, and whether the number falls",
        )),
        Role::Leading => None,
        Role::Following if !alone && health.status.error.is_none() => None,
        Role::TakingOver => Some(CheckView::warn(check, says, "it is starting: look again in a few seconds")),
        Role::Following | Role::Stopped => {
            Some(CheckView::fail(check, says, "nothing of this partition is decided: the server's log says why"))
        }
    }
}

async fn reachable(name: &str, bucket: &Bucket) -> CheckView {
    let check = format!("bucket {name}");
    let advice = "builds cannot publish and regions cannot copy: look at the S3 server, its address and keys";
    // Whether there is such an object does not matter; the answer does.
    match tokio::time::timeout(BUCKET_TIMEOUT, bucket.head("doctor")).await {
        Ok(Ok(_)) => CheckView::ok(check, "it answers"),
        Ok(Err(error)) => CheckView::fail(check, error.to_string(), advice),
        Err(_) => CheckView::fail(check, format!("no answer in {} s", BUCKET_TIMEOUT.as_secs()), advice),
    }
}

fn open_files() -> CheckView {
    let check = "open files";
    let used = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    let Some(max) = getrlimit(Resource::Nofile).current else {
        return CheckView::ok(check, format!("{used}, without a limit"));
    };
    let says = format!("{used} of {max}");
    let advice = "raise the limit (`ulimit -n`, or LimitNOFILE= of the unit) and start again";
    match used * 100 / max.max(1) {
        FILES_FAIL.. => CheckView::fail(check, says, advice),
        FILES_WARN.. => CheckView::warn(check, says, advice),
        _ => CheckView::ok(check, says),
    }
}

#[cfg(test)]
mod tests {
    use longshore_schemas::http::CheckState::{self, Fail, Ok, Warn};

    use super::*;

    #[test]
    fn a_partition_that_is_not_well_has_a_line_of_its_own() {
        let health = |partition, role, lag, error: Option<&str>| {
            let error = error.map(str::to_owned);
            let status = longshore_control::Status { role, error };
            Health { processor: "queue", partition, status, applied: Default::default(), lag: Some(lag) }
        };
        let well = [health(0, Role::Leading, 1, None), health(1, Role::Leading, 2, None)];
        let lines: Vec<_> = processors(&well, true).into_iter().map(|c| (c.state, c.check, c.says)).collect();
        assert_eq!(lines, [(Ok, "processor queue".into(), "2 partitions, led here; 3 requests wait".into())]);
        let unwell = [
            health(0, Role::Leading, 5_000, None),
            health(1, Role::Halted, 7, Some("fact 3 cannot be applied")),
            health(2, Role::Leading, 0, None),
        ];
        let lines = processors(&unwell, true);
        let states: Vec<(CheckState, &str)> = lines.iter().map(|c| (c.state, c.check.as_str())).collect();
        assert_eq!(states, [(Warn, "processor queue/0"), (Fail, "processor queue/1")]);
        assert!(lines[1].says.contains("fact 3 cannot be applied"), "{:?}", lines[1]);
    }

    #[test]
    fn where_others_lead_too_following_is_well_as_long_as_someone_does() {
        let health = |partition, role, lag| {
            let status = longshore_control::Status { role, error: None };
            Health { processor: "queue", partition, status, applied: Default::default(), lag: Some(lag) }
        };
        let shared = [health(0, Role::Leading, 1), health(1, Role::Following, 2)];
        let says = |alone| processors(&shared, alone).into_iter().map(|c| (c.state, c.says)).collect::<Vec<_>>();
        assert_eq!(says(false), [(Ok, "2 partitions, 1 of them led here; 3 requests wait".into())]);
        assert_eq!(says(true)[0].0, Fail);
        let behind = processors(&[health(0, Role::Following, 5_000)], false);
        assert_eq!((behind[0].state, behind[0].check.as_str()), (Warn, "processor queue/0"));
    }
}
