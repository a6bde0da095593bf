//! All partitions of one processor: starts their tasks, tells them what they own, and answers what others ask of them.

use std::{sync::Arc, time::Duration};

use longshore_log::{Log, Membership, Ownership, TopicPartition, clock::Clock};
use longshore_partition::{Gate, Machine, Replica, chain, step::Place};
use longshore_processor::{Fingerprint, fingerprint};
use longshore_schemas::{
    Timestamp,
    events::{Event, Fact},
    read::Outcome,
    topics::{self, Topic},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AcceptError, Applied, Error, Lost, PartitionStore, Rocks, Role, Status, Wire, loss,
    partition::{Hands, Owner, Task},
    past,
    shared::{Shared, Tell},
};

const REJOIN_AFTER: Duration = Duration::from_secs(1);

/// Told of every batch of facts that was applied on this replica, by whom else it was decided. Must return at once.
pub trait Observer<F: Event>: Send + Sync + 'static {
    /// The state, as it is read now, includes these facts.
    fn applied(&self, partition: u32, facts: &[Fact<F>]);
}

impl<F: Event> Observer<F> for () {
    fn applied(&self, _: u32, _: &[Fact<F>]) {}
}

/// What a runtime works with.
#[derive(Clone)]
pub struct Config {
    pub log: Arc<dyn Log>,
    pub rocks: Rocks,
    /// The processor's place in RocksDB: chosen once, never changed, never shared.
    pub store_id: u8,
    /// Whether the processor has signals, which then have as many partitions as its requests.
    pub signals: bool,
    /// The only clock of the runtime.
    pub clock: Clock,
    /// Which requests are believed.
    pub gate: Arc<dyn Gate>,
}

/// Starts processors.
pub struct Runtime;

impl Runtime {
    /// Starts following every partition, and leading those that the log assigns. Reads the stored state first.
    #[expect(clippy::needless_pass_by_value, reason = "every partition holds on to the observer")]
    pub fn start<P: Wire>(
        processor: P,
        config: &Config,
        observer: Arc<dyn Observer<P::Fact>>,
        shutdown: &CancellationToken,
    ) -> Result<Handle<P>, Error> {
        let partitions = check::<P>(config)?;
        let (processor, tracker) = (Arc::new(processor), TaskTracker::new());
        let (mut slots, mut assignments) = (Vec::new(), Vec::new());
        for partition in 0..partitions {
            let number = u16::try_from(partition).expect("the count was checked");
            let store = config.rocks.partition(config.store_id, number);
            let facts = TopicPartition::new(P::Fact::TOPIC.name, partition);
            let mut shared = None;
            let replica = Replica::<P, _>::open(store.clone(), facts, |applied| {
                let seen = Shared::new(partition, applied, observer.clone());
                Box::new(Tell(shared.insert(seen).clone()))
            })?;
            let shared = shared.expect("an open replica has made its listener");
            let (assign, assigned) = watch::channel(Owner::Others);
            let (status, statuses) = watch::channel(Status { role: Role::Following, error: None });
            let place = Place { partition, partitions };
            let task = Task {
                machine: Machine::new(processor.clone(), config.gate.clone(), place, config.signals, replica),
                hands: Hands::new(config.log.clone(), assigned, shutdown.clone()),
                clock: config.clock.clone(),
                started: Instant::now(),
                status: status.clone(),
            };
            supervise::<P>(&tracker, task, status);
            slots.push(Slot { store, shared, status: statuses.clone() });
            assignments.push(Assignment { assign, status: statuses });
        }
        let members = Members { log: config.log.clone(), assignments, shutdown: shutdown.clone() };
        tracker.spawn(members.run::<P>());
        tracker.close();
        Ok(Handle { log: config.log.clone(), slots: slots.into(), tracker })
    }
}

fn check<P: Wire>(config: &Config) -> Result<u32, Error> {
    let topic = P::Request::TOPIC;
    let expected = config.log.partitions(topic.name)?.min(u32::from(u16::MAX));
    let same = |topic: Topic| match config.log.partitions(topic.name)? {
        found if found == expected => Ok(()),
        found => Err(Error::Partitions { topic: topic.name, found, expected }),
    };
    same(topic)?;
    same(P::Fact::TOPIC)?;
    if config.signals {
        same(P::Signal::TOPIC)?;
    }
    Ok(expected)
}

/// Runs a partition's task; if it panics, that partition halts and nothing else.
fn supervise<P: Wire>(tracker: &TaskTracker, task: Task<P>, status: watch::Sender<Status>) {
    let partition = task.machine.place().partition;
    let running = tokio::spawn(task.run());
    tracker.spawn(async move {
        if let Err(error) = running.await {
            tracing::error!(processor = P::NAME, partition, %error, "partition task died");
            status.send_replace(Status { role: Role::Halted, error: Some(error.to_string()) });
        }
    });
}

struct Assignment {
    assign: watch::Sender<Owner>,
    status: watch::Receiver<Status>,
}

/// Carries the log's word on who owns what to the partitions.
struct Members {
    log: Arc<dyn Log>,
    assignments: Vec<Assignment>,
    shutdown: CancellationToken,
}

impl Members {
    async fn run<P: Wire>(mut self) {
        while !self.shutdown.is_cancelled() {
            let joined = self.log.join(P::NAME, P::Request::TOPIC.name).await;
            let ended = match joined {
                Ok(membership) => self.serve::<P>(membership).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(processor = P::NAME, error = chain(&error), "left the group, joining again");
                self.own(0..self.assignments.len(), Owner::Others);
                let _ = self.shutdown.run_until_cancelled(tokio::time::sleep(REJOIN_AFTER)).await;
            }
        }
    }

    async fn serve<P: Wire>(&mut self, mut membership: Box<dyn Membership>) -> Result<(), longshore_log::Error> {
        let shutdown = self.shutdown.clone();
        while let Some(change) = shutdown.run_until_cancelled(membership.next()).await {
            let numbers = |of: &[TopicPartition]| of.iter().map(|of| of.partition as usize).collect::<Vec<_>>();
            match change? {
                Ownership::Assigned(of) => self.own(numbers(&of), Owner::Us),
                Ownership::Unsure(of) => {
                    tracing::warn!(processor = P::NAME, partitions = of.len(), "the group does not answer: going on");
                    self.own(numbers(&of), Owner::Unsure);
                }
                Ownership::Revoked(of) => {
                    self.own(numbers(&of), Owner::Others);
                    // Asking for the next change says that these have stopped.
                    self.stopped(&numbers(&of)).await;
                }
            }
        }
        // The place in the group is kept until nothing of it runs any more.
        self.stopped(&(0..self.assignments.len()).collect::<Vec<_>>()).await;
        Ok(())
    }

    fn own(&self, partitions: impl IntoIterator<Item = usize>, owner: Owner) {
        for assignment in partitions.into_iter().filter_map(|partition| self.assignments.get(partition)) {
            assignment.assign.send_replace(owner);
        }
    }

    async fn stopped(&mut self, partitions: &[usize]) {
        for partition in partitions {
            if let Some(assignment) = self.assignments.get_mut(*partition) {
                let leads = |status: &Status| matches!(status.role, Role::TakingOver | Role::Leading);
                // An error is a task that is gone, and so has stopped.
                let _ = assignment.status.wait_for(|status| !leads(status)).await;
            }
        }
    }
}

struct Slot<F> {
    store: PartitionStore,
    shared: Arc<Shared<F>>,
    status: watch::Receiver<Status>,
}

/// How one partition is, for `/health` and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub processor: &'static str,
    pub partition: u32,
    pub status: Status,
    pub applied: Applied,
    /// Requests that wait; None if the log does not say.
    pub lag: Option<u64>,
}

/// What others hold of a running processor. Its State can be read as long as a handle lives.
pub struct Handle<P: Wire> {
    log: Arc<dyn Log>,
    slots: Arc<[Slot<P::Fact>]>,
    tracker: TaskTracker,
}

impl<P: Wire> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone(), slots: self.slots.clone(), tracker: self.tracker.clone() }
    }
}

impl<P: Wire> Handle<P> {
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("started from a u32")
    }

    /// The partition of a key of this processor's requests.
    pub fn partition_of(&self, key: &str) -> u32 {
        topics::partition_of(key.as_bytes(), self.partitions())
    }

    /// The tables of the key's partition.
    pub fn store_of(&self, key: &str) -> &PartitionStore {
        &self.slots[self.partition_of(key) as usize].store
    }

    /// The tables of every partition, in order.
    pub fn stores(&self) -> impl Iterator<Item = &PartitionStore> {
        self.slots.iter().map(|slot| &slot.store)
    }

    /// How far a partition is, to look at or to wait on. None if there is no such partition.
    pub fn applied(&self, partition: u32) -> Option<watch::Receiver<Applied>> {
        self.slots.get(partition as usize).map(|slot| slot.shared.applied.subscribe())
    }

    /// Waits until the request at `offset` was processed and applied here, or the time is over.
    pub async fn outcome(&self, partition: u32, offset: u64, wait: Duration) -> Outcome {
        let Some(slot) = self.slots.get(partition as usize) else { return Outcome::Pending };
        if let Some(outcome) = slot.shared.outcomes.of(offset, wait).await {
            return outcome;
        }
        let end = slot.shared.applied.borrow().fact_offset;
        match past::outcome::<P>(&*self.log, partition, offset, end).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(
                    processor = P::NAME,
                    partition,
                    offset,
                    error = chain(&error),
                    "an outcome cannot be read"
                );
                Outcome::Pending
            }
        }
    }

    /// Each partition's fingerprint, and how far the state was when it was taken.
    pub fn fingerprints(&self) -> Result<Vec<(u32, Applied, Fingerprint)>, Error> {
        (0..)
            .zip(self.slots.iter())
            .map(|(partition, slot)| {
                let held = slot.store.hold()?;
                let view = held.view();
                Ok((partition, view.applied()?, fingerprint(&view, P::TABLES)?))
            })
            .collect()
    }

    /// Accepts, in the name of `by`, that these requests were lost: whoever leads the partition then goes on after them.
    pub async fn accept_loss(&self, partition: u32, lost: Lost, by: &str, now: Timestamp) -> Result<(), AcceptError> {
        if partition >= self.partitions() {
            return Err(AcceptError::NoPartition { processor: P::NAME, partition });
        }
        loss::accept::<P>(&*self.log, partition, lost, by, now).await
    }

    /// Each partition's role and what went wrong last, in order.
    pub fn statuses(&self) -> Vec<Status> {
        self.slots.iter().map(|slot| slot.status.borrow().clone()).collect()
    }

    pub async fn health(&self) -> Vec<Health> {
        let mut health = Vec::with_capacity(self.slots.len());
        for (partition, slot) in (0..).zip(self.slots.iter()) {
            let applied = *slot.shared.applied.borrow();
            let requests = TopicPartition::new(P::Request::TOPIC.name, partition);
            let end = self.log.end_offset(&requests).await.ok();
            let lag = end.map(|end| end.saturating_sub(applied.request_offset));
            let status = slot.status.borrow().clone();
            health.push(Health { processor: P::NAME, partition, status, applied, lag });
        }
        health
    }

    /// Waits until every task has ended, after the shutdown.
    pub async fn stopped(&self) {
        self.tracker.wait().await;
    }
}
