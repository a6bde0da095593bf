//! What only the leader of a queue needs and may forget: claims that wait, and when each running attempt was last heard of.
//!
//! It is empty at takeover. Claims come back because the API repeats them; leases begin anew in [`Soft::adopt`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_planted::{Bug, planted};
use longshore_processor::{Order, Range, StateError, Store};
use longshore_schemas::{ClaimId, JobId, QueueName, Timestamp, WorkerId};

use crate::tables;

/// A claim lives at most this long after it was last repeated, whatever its sender says.
pub const CLAIM_SECONDS_MAX: u64 = 60;

#[derive(Debug, Default)]
pub struct Soft {
    pub(crate) claims: Claims,
    pub(crate) leases: Leases,
    adopted: bool,
}

impl Soft {
    /// The first time: gives every running attempt a lease of the full silent time, as if it had just been heard of.
    pub(crate) fn adopt(&mut self, state: &dyn Store, now: Timestamp, silent: Duration) -> Result<(), StateError> {
        if self.adopted {
            return Ok(());
        }
        let running = tables::RUNNING.list(state, &Range::all(), Order::Ascending, usize::MAX)?;
        for (job, ()) in running {
            let attempt = tables::JOBS.expect(state, &job)?.attempt;
            self.leases.put(job, Lease { attempt, confirmed: true, heard_at: now, due: now + silent });
        }
        self.adopted = true;
        Ok(())
    }

    /// Claims that wait, over all queues.
    pub fn open_claims(&self) -> usize {
        self.claims.by_id.len()
    }

    /// Attempts that are watched.
    pub fn leases(&self) -> usize {
        self.leases.by_job.len()
    }
}

/// A worker's wish for a job, while none is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) worker: WorkerId,
    pub(crate) claim: ClaimId,
    expires_at: Timestamp,
}

impl Claim {
    fn waits(&self, now: Timestamp) -> bool {
        self.expires_at > now || planted(Bug::ForgetClaimExpiry)
    }
}

/// Claims that wait, first in, first out in each queue.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    waiting: BTreeMap<(QueueName, u64), Claim>,
    by_id: BTreeMap<ClaimId, (QueueName, u64)>,
    next_place: u64,
}

impl Claims {
    /// Adds a claim, or prolongs it where it stands. At the limit, a new claim is not taken: it will be repeated.
    pub(crate) fn add(
        &mut self,
        queue: &QueueName,
        worker: &WorkerId,
        claim: &ClaimId,
        expires_at: Timestamp,
        now: Timestamp,
        claims_max: usize,
    ) {
        let expires_at = expires_at.min(now + Duration::from_secs(CLAIM_SECONDS_MAX));
        if let Some(waiting) = self.by_id.get(claim).and_then(|place| self.waiting.get_mut(place)) {
            waiting.expires_at = waiting.expires_at.max(expires_at);
            return;
        }
        if self.waiting.len() >= claims_max {
            self.drop_expired(now);
        }
        if self.waiting.len() >= claims_max {
            return;
        }
        let place = (queue.clone(), self.next_place);
        self.next_place += 1;
        self.by_id.insert(claim.clone(), place.clone());
        self.waiting.insert(place, Claim { worker: worker.clone(), claim: claim.clone(), expires_at });
    }

    /// Takes a claim back.
    pub(crate) fn remove(&mut self, claim: &ClaimId) {
        if let Some(place) = self.by_id.remove(claim) {
            self.waiting.remove(&place);
        }
    }

    pub(crate) fn any(&self, queue: &QueueName, now: Timestamp) -> bool {
        self.of(queue).any(|(_, claim)| claim.waits(now))
    }

    /// Takes the queue's first claim that still waits.
    pub(crate) fn take(&mut self, queue: &QueueName, now: Timestamp) -> Option<Claim> {
        loop {
            let place = self.of(queue).next()?.0.clone();
            let claim = self.waiting.remove(&place)?;
            self.by_id.remove(&claim.claim);
            if claim.waits(now) {
                return Some(claim);
            }
        }
    }

    fn of(&self, queue: &QueueName) -> impl Iterator<Item = (&(QueueName, u64), &Claim)> {
        self.waiting.range((queue.clone(), 0)..=(queue.clone(), u64::MAX))
    }

    fn drop_expired(&mut self, now: Timestamp) {
        self.waiting.retain(|_, claim| claim.expires_at > now);
        let waiting = &self.waiting;
        self.by_id.retain(|_, place| waiting.contains_key(place));
    }
}

/// How long an attempt may stay silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) attempt: u32,
    /// A beat came, so the worker knows that the attempt is its own.
    pub(crate) confirmed: bool,
    pub(crate) heard_at: Timestamp,
    pub(crate) due: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_job: BTreeMap<JobId, Lease>,
    by_due: BTreeSet<(Timestamp, JobId)>,
}

impl Leases {
    pub(crate) fn put(&mut self, job: JobId, lease: Lease) {
        self.remove(&job);
        self.by_due.insert((lease.due, job.clone()));
        self.by_job.insert(job, lease);
    }

    pub(crate) fn remove(&mut self, job: &JobId) -> Option<Lease> {
        let lease = self.by_job.remove(job)?;
        self.by_due.remove(&(lease.due, job.clone()));
        Some(lease)
    }

    /// When the lease of this job's attempt runs out.
    pub(crate) fn due(&self, job: &JobId) -> Option<Timestamp> {
        self.by_job.get(job).map(|lease| lease.due)
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// Takes the lease that ran out first.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<(JobId, Lease)> {
        let (due, job) = self.by_due.first()?;
        if *due > now {
            return None;
        }
        let job = job.clone();
        let lease = self.remove(&job)?;
        Some((job, lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_wait_in_order_expire_and_are_bounded() {
        let queue: QueueName = "q".parse().expect("valid");
        let worker: WorkerId = "w".parse().expect("valid");
        let claim = |id: &str| id.parse::<ClaimId>().expect("valid");
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
        let mut claims = Claims::default();
        for (id, expires) in [("a", 10), ("b", 20), ("c", 20), ("d", 20)] {
            claims.add(&queue, &worker, &claim(id), at(expires), at(0), 3);
        }
        claims.add(&queue, &worker, &claim("b"), at(30), at(5), 3);
        let take = |claims: &mut Claims, now| claims.take(&queue, at(now)).map(|c| c.claim.to_string());
        assert_eq!(take(&mut claims, 10), Some("b".into()), "a has expired; a repeated claim keeps its place");
        assert_eq!(take(&mut claims, 10), Some("c".into()));
        assert_eq!(take(&mut claims, 10), None, "d came when three were waiting");
        claims.add(&queue, &worker, &claim("e"), at(1_000_000), at(0), 3);
        assert_eq!(take(&mut claims, 61), None, "no claim outlives the limit");
        assert!(claims.by_id.is_empty() && claims.waiting.is_empty());
    }
}
