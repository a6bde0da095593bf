//! The task of one partition: carries out what its machine asks for, and brings back the answers.
//!
//! Waiting and acting are apart. Here is what awaits: it changes nothing and decides nothing. What an answer means is
//! decided by [`Machine::handle`], without a wait in the middle.

use std::{sync::Arc, time::Duration};

use longshore_log::{CommitError, Log, ReadLimit, Reader, TopicPartition, Writer, clock::Clock};
use longshore_partition::{Answer, Around, Effect, Error, Machine, Question, Role, Status, Wire};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::PartitionStore;

/// Whose a partition is, as its group says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Us,
    Others,
    /// Ours before the group ceased to answer. Who leads goes on, until fencing says who else has it; who does not lead
    /// would fence an owner that the group knows.
    Unsure,
}

impl Owner {
    fn is_us(self, leads: bool) -> bool {
        self == Self::Us || (self == Self::Unsure && leads)
    }
}

/// What is read at once.
const READ: ReadLimit = ReadLimit { records: 2_000, bytes: 1024 * 1024 };

pub(crate) struct Task<P: Wire> {
    pub(crate) machine: Machine<P, PartitionStore>,
    pub(crate) hands: Hands,
    pub(crate) clock: Clock,
    pub(crate) started: Instant,
    pub(crate) status: watch::Sender<Status>,
}

impl<P: Wire> Task<P> {
    /// Runs until shutdown, or until the partition halts.
    pub(crate) async fn run(mut self) {
        let mut effect = self.machine.start(self.around());
        loop {
            self.publish();
            let answer = match effect {
                Effect::End => return,
                effect => self.hands.carry_out(effect).await.unwrap_or_else(Answer::Failed),
            };
            effect = self.machine.handle(answer, self.around());
        }
    }

    fn around(&self) -> Around {
        let Hands { assigned, shutdown, .. } = &self.hands;
        let leads = self.machine.status().role == Role::Leading;
        let (assigned, stopping) = (assigned.borrow().is_us(leads), shutdown.is_cancelled());
        Around { now: (self.clock)(), steady: self.started.elapsed(), assigned, stopping }
    }

    /// Shows the role to others, if it has changed.
    fn publish(&self) {
        let status = self.machine.status();
        if *self.status.borrow() == *status {
            return;
        }
        let (processor, partition) = (P::NAME, self.machine.place().partition);
        match (status.role, status.error.as_deref()) {
            (Role::Halted, error) => tracing::error!(processor, partition, error, "partition halted"),
            (_, Some(error)) => tracing::warn!(processor, partition, error, "beginning anew"),
            (Role::Leading, None) => {
                tracing::info!(processor, partition, applied = ?self.machine.replica().applied(), "leading");
            }
            _ => {}
        }
        self.status.send_replace(status.clone());
    }
}

/// What effects are carried out with.
pub(crate) struct Hands {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) assigned: watch::Receiver<Owner>,
    pub(crate) shutdown: CancellationToken,
    reading: Option<Reading>,
    writer: Option<Box<dyn Writer>>,
}

struct Reading {
    reader: Box<dyn Reader>,
    sources: Vec<TopicPartition>,
}

impl Hands {
    pub(crate) fn new(log: Arc<dyn Log>, assigned: watch::Receiver<Owner>, shutdown: CancellationToken) -> Self {
        Self { log, assigned, shutdown, reading: None, writer: None }
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<Answer, Error> {
        match effect {
            Effect::Open(from) => {
                // Before the next one is there: a log may share what its readers read with.
                self.reading = None;
                let sources = from.iter().map(|(of, _)| of.clone()).collect();
                self.reading = Some(Reading { reader: self.log.reader(from)?, sources });
                Ok(Answer::Done)
            }
            Effect::Read { due, assigned } => self.read(due, assigned).await,
            Effect::TakeWriter(owner) => {
                self.writer = Some(self.log.writer(&owner).await?);
                Ok(Answer::Done)
            }
            Effect::Ask(questions) => {
                let mut offsets = Vec::with_capacity(questions.len());
                for question in &questions {
                    offsets.push(ask(&*self.log, question).await?);
                }
                Ok(Answer::Offsets(offsets))
            }
            Effect::Commit(batch) => {
                let spent = || CommitError::Failed(longshore_log::Error::WriterSpent);
                let writer = self.writer.as_mut().ok_or_else(spent)?;
                Ok(Answer::Committed(writer.commit(batch).await?))
            }
            Effect::Rest(time) => {
                let _ = self.shutdown.run_until_cancelled(tokio::time::sleep(time)).await;
                Ok(Answer::Done)
            }
            Effect::End => Ok(Answer::Ended),
        }
    }

    /// Waits for whichever comes first.
    async fn read(&mut self, due: Option<Duration>, while_assigned: bool) -> Result<Answer, Error> {
        let Some(Reading { reader, sources }) = &mut self.reading else { return Ok(Answer::Ended) };
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        let records = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Ok(Answer::Ended),
            // A sender that is gone is a service that is gone.
            _ = self.assigned.wait_for(|owner| owner.is_us(while_assigned) != while_assigned) => return Ok(Answer::Ended),
            // Before reading, so that a steady stream of records does not hold up what is due.
            () = timer => return Ok(Answer::Due),
            records = reader.read(READ) => records?,
        };
        let positions = sources.iter().map(|of| reader.position(of).unwrap_or_default()).collect();
        Ok(Answer::Read { records, positions })
    }
}

async fn ask(log: &dyn Log, question: &Question) -> Result<u64, longshore_log::Error> {
    match question {
        Question::Start(of) => log.start_offset(of).await,
        Question::End(of) => log.end_offset(of).await,
        Question::At(of, at) => log.offset_at(of, *at).await,
    }
}
