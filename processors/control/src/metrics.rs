//! What the processors did and how far they are, counted from outcomes: the hearts themselves count nothing.

use std::sync::{Arc, LazyLock};

use longshore_log::{Log, Record, StoredRecord, TopicPartition};
use longshore_runtime::{Gate, Health, Keyring, Observer, Role};
use longshore_schemas::{
    Timestamp,
    auth::{Speaker, Untrusted},
    events::{Fact, FactEvent, RefusalCode, ReportOrder},
    http::QueueView,
    topics,
};
use longshore_service::{
    metrics::{Counters, Gauges},
    request_keys::RequestKeys,
};
use longshore_signing::{SigningKey, goal::GOAL, record};

use crate::limits::QUEUED;

static FACTS: LazyLock<Counters<2>> =
    LazyLock::new(|| Counters::new("longshore_facts", "Facts applied on this replica", ["topic", "kind"]));
static REFUSALS: LazyLock<Counters<2>> =
    LazyLock::new(|| Counters::new("longshore_refusals", "Requests refused by a processor", ["topic", "code"]));
static ROLE: LazyLock<Gauges<3>> = LazyLock::new(|| {
    Gauges::new(
        "longshore_partition_role",
        "1 for the role that a partition has here",
        ["processor", "partition", "role"],
    )
});
static LAG: LazyLock<Gauges<2>> = LazyLock::new(|| {
    Gauges::new("longshore_partition_lag_records", "Requests that wait to be processed", ["processor", "partition"])
});
static AGE: LazyLock<Gauges<2>> = LazyLock::new(|| {
    Gauges::new("longshore_partition_applied_age_seconds", "Since the last fact applied", ["processor", "partition"])
});
static ENDS: LazyLock<Gauges<2>> = LazyLock::new(|| {
    Gauges::new("longshore_log_end_offset", "Where a partition of the log ends", ["topic", "partition"])
});
static DEAD_LETTERS: LazyLock<Gauges<0>> =
    LazyLock::new(|| Gauges::new("longshore_dead_letters", "Records that no processor could take, so far", []));
static UNTRUSTED: LazyLock<Counters<2>> = LazyLock::new(|| {
    Counters::new(
        "longshore_untrusted_requests",
        "Requests that were not by whom they must be, and became dead letters",
        ["topic", "reason"],
    )
});
static JOBS_QUEUED: LazyLock<Gauges<1>> =
    LazyLock::new(|| Gauges::new("longshore_jobs_queued", "Jobs that wait", ["queue"]));
static JOBS_RUNNING: LazyLock<Gauges<1>> =
    LazyLock::new(|| Gauges::new("longshore_jobs_running", "Jobs that run", ["queue"]));

/// Queues that are shown by name. People name them, so there may be any number; what is left is shown together.
const QUEUES_NAMED_MAX: usize = 100;

/// The gate of this control node, which counts whom it does not let pass, and signs goals.
pub(crate) struct CountingGate {
    keys: Keyring,
    goal_key: Arc<SigningKey>,
}

impl CountingGate {
    pub(crate) fn new(keys: &RequestKeys, goal_key: Arc<SigningKey>) -> Self {
        Self { keys: Keyring::new(keys.own().clone(), keys.known()), goal_key }
    }
}

impl Gate for CountingGate {
    fn check(
        &self,
        speaker: Speaker<'_>,
        report: Option<&ReportOrder>,
        record: &StoredRecord,
    ) -> Result<(), Untrusted> {
        let checked = self.keys.check(speaker, report, record);
        if let Err(untrusted) = &checked {
            UNTRUSTED.count([&record.source.topic, untrusted.word()], 1);
        }
        checked
    }

    fn seal(&self, topic: &str, record: Record) -> Record {
        if topic == topics::GOAL_STATE.name {
            let signature = record::sign(&GOAL, record.value.as_deref().unwrap_or_default(), &self.goal_key);
            return record.with_header(record::SIGNATURE, signature);
        }
        self.keys.seal(topic, record)
    }
}

/// Counts facts, and tells them to the next.
pub(crate) struct Counting<O>(pub(crate) Arc<O>);

impl<E: FactEvent, O: Observer<E>> Observer<E> for Counting<O> {
    fn applied(&self, partition: u32, facts: &[Fact<E>]) {
        for fact in facts {
            FACTS.count([E::TOPIC.name, fact.event.kind()], 1);
            for refusal in fact.event.processed().into_iter().flat_map(|processed| &processed.refusals) {
                REFUSALS.count([E::TOPIC.name, code(refusal.code)], 1);
                // The queue refuses so for one reason only.
                if E::TOPIC == topics::BUILDS && refusal.code == RefusalCode::Exhausted {
                    QUEUED.refused();
                }
            }
        }
        self.0.applied(partition, facts);
    }
}

fn code(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::NotFound => "not_found",
        RefusalCode::Conflict => "conflict",
        RefusalCode::Stale => "stale",
        RefusalCode::Exhausted => "exhausted",
        RefusalCode::Invalid => "invalid",
    }
}

/// A role as a label and in messages.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Following => "following",
        Role::TakingOver => "taking over",
        Role::Leading => "leading",
        Role::Halted => "halted",
        Role::Stopped => "stopped",
    }
}

/// Sets the gauges to how things are now.
pub(crate) async fn show(log: &dyn Log, health: &[Health], queues: &[QueueView], now: Timestamp) {
    ROLE.clear();
    for Health { processor, partition, status, applied, lag } in health {
        let partition = partition.to_string();
        ROLE.set([processor, &partition, role_name(status.role)], 1);
        LAG.set([processor, &partition], lag.unwrap_or(0));
        if applied.fact_offset > 0 {
            AGE.set([processor, &partition], now.since(applied.at).as_secs());
        }
    }
    for topic in topics::ALL {
        for partition in 0..topic.partitions {
            // A log that does not say is shown as it was.
            let Ok(end) = log.end_offset(&TopicPartition::new(topic.name, partition)).await else { continue };
            ENDS.set([topic.name, &partition.to_string()], end);
            if topic == topics::DEAD_LETTERS {
                DEAD_LETTERS.set([], end);
            }
        }
    }
    JOBS_QUEUED.clear();
    JOBS_RUNNING.clear();
    let (mut more_queued, mut more_running) = (0, 0);
    for (index, view) in queues.iter().enumerate() {
        let (queued, running) = (u64::from(view.queued), u64::from(view.running));
        if index < QUEUES_NAMED_MAX {
            JOBS_QUEUED.set([view.queue.as_str()], queued);
            JOBS_RUNNING.set([view.queue.as_str()], running);
        } else {
            (more_queued, more_running) = (more_queued + queued, more_running + running);
        }
    }
    if queues.len() > QUEUES_NAMED_MAX {
        JOBS_QUEUED.set(["(others)"], more_queued);
        JOBS_RUNNING.set(["(others)"], more_running);
    }
}
