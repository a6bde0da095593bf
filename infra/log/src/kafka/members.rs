//! Membership: a consumer that fetches nothing and only knows what its group gives it.
//!
//! ```text
//! poll ─▶ callback: notes the change ─▶ after the poll: assign, or tell the member and wait ─▶ unassign
//! ```
//!
//! Assignment is cooperative: only what moves is taken away, and only when its holder has said that it stopped. Nothing is
//! done inside librdkafka's callback.
//!
//! A broker that dies takes its groups' sessions with it, and until another coordinates them no heartbeat is answered. So a
//! member has a name of its own, by which the group gives it back what it had, and meanwhile is unsure of that and no
//! more: were it to stop, every partition would stop and move whenever a broker dies.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaRespErr,
};
use tokio::sync::mpsc;

use super::{
    Shared,
    client::{Client, Context},
    topics::Topic,
};
use crate::{Error, Membership, Ownership, TopicPartition};

const POLL: Duration = Duration::from_millis(50);
/// How often offsets are stored for lag tools.
const OFFSETS_EVERY: Duration = Duration::from_secs(1);
/// How long a member without a session may be unsure: longer than a cluster takes to find new leaders.
const UNSURE_MAX: Duration = Duration::from_secs(30);
/// How often a member that leaves looks for the group's word.
const LEAVE_POLLS: u32 = 4;

enum Change {
    Assign(TopicPartitionList),
    Revoke(TopicPartitionList),
    /// The session is over: the group may have given these to others already.
    Lose(TopicPartitionList),
}

#[derive(Default)]
struct Changes {
    noted: Mutex<VecDeque<Change>>,
    /// The member leaves: nobody is told any more.
    leaving: AtomicBool,
}

impl ConsumerContext for Context<Changes> {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if self.own.leaving.load(Ordering::Acquire) {
            let done = match kind {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => consumer.incremental_assign(partitions),
                _ => consumer.incremental_unassign(partitions),
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a partition could not be given back while leaving");
            }
            return;
        }
        let partitions = partitions.clone();
        let change = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assign(partitions),
            _ if consumer.assignment_lost() => Change::Lose(partitions),
            _ => Change::Revoke(partitions),
        };
        self.own.noted.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
    }
}

pub(super) struct KafkaMembership {
    changes: mpsc::UnboundedReceiver<Result<Ownership, Error>>,
    stopped: blocking::Sender<()>,
    /// The member was told to stop with something, and has not said yet that it did.
    told_to_stop: bool,
    leave: Arc<AtomicBool>,
}

pub(super) fn join(shared: &Arc<Shared>, group: &str, topic: &Arc<Topic>) -> Result<KafkaMembership, Error> {
    let context = Context::with(Client::Membership, &shared.watch, Changes::default());
    // Nobody else's name, as the keys of these are random.
    let instance = format!("{}-{:016x}", shared.config.client_id, RandomState::new().hash_one(group));
    let consumer = BaseConsumer::from_config_and_context(&shared.config.membership(group, &instance), context)
        .map_err(|error| Error::kafka("joining a group", error))?;
    consumer.subscribe(&[topic.kafka.as_str()]).map_err(|error| Error::kafka("joining a group", error))?;
    let (tell, changes) = mpsc::unbounded_channel();
    let (stopped, acknowledged) = blocking::channel();
    let leave = Arc::new(AtomicBool::new(false));
    let member = Member {
        shared: shared.clone(),
        topic: topic.clone(),
        consumer,
        held: BTreeSet::new(),
        unsure: BTreeSet::new(),
        unsure_since: Instant::now(),
        releasing: None,
        unacknowledged: 0,
        tell,
        acknowledged,
        leave: leave.clone(),
        stored_at: Instant::now(),
        stored: Vec::new(),
        guard: shared.members.enter(),
    };
    std::thread::Builder::new()
        .name("kafka-member".to_owned())
        .spawn(move || member.run())
        .map_err(|source| Error::Storage { doing: "starting a thread", source: Arc::new(source) })?;
    Ok(KafkaMembership { changes, stopped, told_to_stop: false, leave })
}

#[async_trait]
impl Membership for KafkaMembership {
    async fn next(&mut self) -> Result<Ownership, Error> {
        if std::mem::take(&mut self.told_to_stop) {
            // A thread that is gone has told why.
            let _ = self.stopped.send(());
        }
        let change = self.changes.recv().await.unwrap_or(Err(Error::Closed))?;
        self.told_to_stop = matches!(change, Ownership::Revoked(_));
        Ok(change)
    }
}

impl Drop for KafkaMembership {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Release);
    }
}

/// The thread of a membership.
struct Member {
    shared: Arc<Shared>,
    topic: Arc<Topic>,
    consumer: BaseConsumer<Context<Changes>>,
    held: BTreeSet<u32>,
    /// Those of `held` that may be others' since the session was lost.
    unsure: BTreeSet<u32>,
    unsure_since: Instant,
    /// What the member was told to stop with.
    releasing: Option<TopicPartitionList>,
    /// How many times it was told to stop and has not said that it did.
    unacknowledged: usize,
    tell: mpsc::UnboundedSender<Result<Ownership, Error>>,
    acknowledged: blocking::Receiver<()>,
    leave: Arc<AtomicBool>,
    stored_at: Instant,
    stored: Vec<(u32, u64)>,
    guard: super::Present,
}

impl Member {
    fn run(mut self) {
        while !self.leave.load(Ordering::Acquire) {
            if let Some(Err(error)) = self.consumer.poll(POLL)
                && let KafkaError::MessageConsumptionFatal(_) = error
            {
                let _ = self.tell.send(Err(Error::kafka("being a member of a group", error)));
                break;
            }
            if let Err(error) = self.follow() {
                let _ = self.tell.send(Err(Error::kafka("being a member of a group", error)));
                break;
            }
            self.store_offsets();
        }
        self.leave();
        drop(self.consumer);
        drop(self.guard);
    }

    /// Says so to the group, which would wait for a member with a name until its session is over.
    fn leave(&self) {
        self.consumer.context().own.leaving.store(true, Ordering::Release);
        // Changes that were noted and not carried out would keep the consumer from leaving.
        let held = self.consumer.assignment().and_then(|held| self.consumer.incremental_unassign(&held));
        if let Err(error) = held {
            tracing::debug!(%error, "partitions could not be given back while leaving");
        }
        self.consumer.unsubscribe();
        // It hears of its last revocation and then tells the group, which a consumer that closes would not. If that is
        // lost, its session's end tells.
        for _ in 0..LEAVE_POLLS {
            if let Some(Err(error)) = self.consumer.poll(POLL) {
                tracing::debug!(%error, "leaving a group");
            }
        }
    }

    /// Carries out what the callback has noted.
    fn follow(&mut self) -> Result<(), KafkaError> {
        while self.acknowledged.try_recv().is_ok() {
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
        if self.unacknowledged == 0 {
            self.release()?;
        }
        while self.releasing.is_none() {
            let change = self.consumer.context().own.noted.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match change {
                None => break,
                Some(Change::Assign(partitions)) => self.assign(partitions)?,
                Some(Change::Revoke(partitions)) => {
                    let numbers = self.numbers(&partitions).collect();
                    self.releasing = Some(partitions);
                    if !self.revoke(numbers) {
                        self.release()?;
                    }
                }
                Some(Change::Lose(partitions)) => {
                    self.consumer.incremental_unassign(&partitions)?;
                    self.be_unsure();
                }
            }
        }
        if self.unsure_since.elapsed() > UNSURE_MAX {
            let unsure = std::mem::take(&mut self.unsure);
            self.revoke(unsure);
        }
        Ok(())
    }

    /// Whether there was something to stop with.
    fn revoke(&mut self, numbers: BTreeSet<u32>) -> bool {
        let told: Vec<u32> = numbers.into_iter().filter(|number| self.held.remove(number)).collect();
        for number in &told {
            self.unsure.remove(number);
        }
        let any = !told.is_empty();
        if any {
            self.unacknowledged += 1;
            let _ = self.tell.send(Ok(Ownership::Revoked(self.named(told))));
        }
        any
    }

    fn be_unsure(&mut self) {
        if self.unsure.is_empty() {
            self.unsure_since = Instant::now();
        }
        self.unsure.clone_from(&self.held);
        if !self.held.is_empty() {
            let _ = self.tell.send(Ok(Ownership::Unsure(self.named(self.held.iter().copied().collect()))));
        }
    }

    fn assign(&mut self, mut partitions: TopicPartitionList) -> Result<(), KafkaError> {
        partitions.set_all_offsets(Offset::End)?;
        self.consumer.incremental_assign(&partitions)?;
        // This consumer is for its group's word only.
        self.consumer.pause(&partitions)?;
        let numbers: BTreeSet<u32> = self.numbers(&partitions).collect();
        let unsure = std::mem::take(&mut self.unsure);
        // A member without a session holds nothing for the group: what it is given next is all that it has.
        self.revoke(&unsure - &numbers);
        let new: Vec<u32> =
            numbers.into_iter().filter(|number| self.held.insert(*number) || unsure.contains(number)).collect();
        if !new.is_empty() {
            let _ = self.tell.send(Ok(Ownership::Assigned(self.named(new))));
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), KafkaError> {
        match self.releasing.take() {
            Some(partitions) => self.consumer.incremental_unassign(&partitions),
            None => Ok(()),
        }
    }

    fn numbers(&self, partitions: &TopicPartitionList) -> impl Iterator<Item = u32> + use<> {
        let ours = partitions.elements_for_topic(&self.topic.kafka);
        let numbers: Vec<u32> = ours.iter().map(|element| element.partition() as u32).collect();
        numbers.into_iter()
    }

    fn named(&self, partitions: Vec<u32>) -> Vec<TopicPartition> {
        let name = |partition| TopicPartition::new(self.topic.name.clone(), partition);
        partitions.into_iter().map(name).collect()
    }

    /// Tells the group how far this process's commits are. Nothing depends on it.
    fn store_offsets(&mut self) {
        if self.stored_at.elapsed() < OFFSETS_EVERY || self.held.is_empty() {
            return;
        }
        self.stored_at = Instant::now();
        let of = |partition| TopicPartition::new(self.topic.name.clone(), partition);
        let consumed = self.held.iter().filter_map(|number| Some((*number, self.shared.consumed_of(&of(*number))?)));
        let consumed: Vec<(u32, u64)> = consumed.collect();
        if consumed == self.stored {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &consumed {
            let added = list.add_partition_offset(&self.topic.kafka, *partition as i32, Offset::Offset(*offset as i64));
            if added.is_err() {
                return;
            }
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            tracing::debug!(%error, "offsets for lag tools were not stored");
        }
        self.stored = consumed;
    }
}
