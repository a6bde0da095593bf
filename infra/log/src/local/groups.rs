//! Membership: who in this process owns which partitions, as [`crate::group`] has it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::shared::Shared;
use crate::{
    Error, Membership, Ownership, TopicPartition,
    group::{Change, Group},
};

/// Groups with at least one member.
const GROUPS_MAX: usize = 10_000;

type GroupKey = (String, Arc<str>);

#[derive(Default)]
pub(super) struct Groups {
    groups: Mutex<HashMap<GroupKey, Group>>,
}

impl Groups {
    pub(super) fn join(shared: &Arc<Shared>, group: &str, topic: &str) -> Result<LocalMembership, Error> {
        shared.check_open()?;
        let topic = shared.topic(topic)?;
        let key = (group.to_owned(), topic.name.clone());
        let mut groups = shared.groups.lock();
        if !groups.contains_key(&key) && groups.len() >= GROUPS_MAX {
            return Err(Error::TooMany { what: "groups", limit: GROUPS_MAX });
        }
        let group = groups.entry(key.clone()).or_default();
        group.partitions = topic.partitions;
        let (member, changed) = group.join()?;
        drop(groups);
        Ok(LocalMembership { shared: shared.clone(), key, member, changed })
    }

    /// Wakes all members, which then find the log closed.
    pub(super) fn close(&self) {
        self.lock().values().for_each(Group::wake);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GroupKey, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct LocalMembership {
    shared: Arc<Shared>,
    key: GroupKey,
    member: u64,
    changed: Arc<Notify>,
}

impl LocalMembership {
    /// Acknowledges the last revocation and looks for the next change.
    fn step(&self) -> Option<Change> {
        let mut groups = self.shared.groups.lock();
        let group = groups.get_mut(&self.key)?;
        group.released(self.member);
        group.change(self.member)
    }

    fn named(&self, partitions: BTreeSet<u32>) -> Vec<TopicPartition> {
        partitions.into_iter().map(|partition| TopicPartition::new(self.key.1.clone(), partition)).collect()
    }
}

#[async_trait]
impl Membership for LocalMembership {
    async fn next(&mut self) -> Result<Ownership, Error> {
        loop {
            self.shared.check_open()?;
            match self.step() {
                Some(Change::Assigned(partitions)) => return Ok(Ownership::Assigned(self.named(partitions))),
                Some(Change::Revoked(partitions)) => return Ok(Ownership::Revoked(self.named(partitions))),
                None => self.changed.notified().await,
            }
        }
    }
}

impl Drop for LocalMembership {
    fn drop(&mut self) {
        let mut groups = self.shared.groups.lock();
        if let Some(group) = groups.get_mut(&self.key) {
            group.leave(self.member);
            if group.members.is_empty() {
                groups.remove(&self.key);
            }
        }
    }
}
