//! Who of a group's members owns which partitions.
//!
//! Every member has a target, the partitions it should own, and holds those it was told of. A change of members makes new
//! targets that move as little as possible. A member is told to give up what it holds beyond its target, and says that it
//! did by asking for the next change; only then another is told that it has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::Notify;

use crate::Error;

/// Members of one group.
const MEMBERS_MAX: usize = 10_000;

#[derive(Default)]
pub(crate) struct Group {
    pub(crate) partitions: u32,
    next_member: u64,
    pub(crate) members: BTreeMap<u64, Member>,
}

#[derive(Default)]
pub(crate) struct Member {
    target: BTreeSet<u32>,
    /// Told to the member and not given up yet.
    held: BTreeSet<u32>,
    /// The part of `held` that the member was told to give up.
    releasing: BTreeSet<u32>,
    changed: Arc<Notify>,
}

/// What a member is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Assigned(BTreeSet<u32>),
    Revoked(BTreeSet<u32>),
}

impl Group {
    pub(crate) fn join(&mut self) -> Result<(u64, Arc<Notify>), Error> {
        if self.members.len() >= MEMBERS_MAX {
            return Err(Error::TooMany { what: "members of one group", limit: MEMBERS_MAX });
        }
        let id = self.next_member;
        self.next_member += 1;
        let member = Member::default();
        let changed = member.changed.clone();
        self.members.insert(id, member);
        self.balance();
        Ok((id, changed))
    }

    pub(crate) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
        self.balance();
    }

    /// Gives every member its fair share, each as much as possible of what it has.
    fn balance(&mut self) {
        let members = self.members.len() as u32;
        if members == 0 {
            return;
        }
        let (share, extra) = (self.partitions / members, self.partitions % members);
        let mut free: BTreeSet<u32> = (0..self.partitions).collect();
        // Members with the most keep the larger shares, so that nothing moves only to even out a remainder.
        let mut order: Vec<u64> = self.members.keys().copied().collect();
        order.sort_by_key(|id| std::cmp::Reverse(self.members[id].target.len()));
        let quotas = order.iter().zip(0..).map(|(id, rank)| (*id, (share + u32::from(rank < extra)) as usize));
        let quotas: Vec<(u64, usize)> = quotas.collect();
        for (id, quota) in &quotas {
            let Some(member) = self.members.get_mut(id) else { continue };
            member.target = member.target.iter().copied().take(*quota).collect();
            free.retain(|partition| !member.target.contains(partition));
        }
        for (id, quota) in &quotas {
            let Some(member) = self.members.get_mut(id) else { continue };
            while member.target.len() < *quota {
                let Some(partition) = free.pop_first() else { break };
                member.target.insert(partition);
            }
        }
        self.wake();
    }

    /// The member says that it gave up what it was told to.
    pub(crate) fn released(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let released = std::mem::take(&mut member.releasing);
        if !released.is_empty() {
            member.held.retain(|partition| !released.contains(partition));
            self.wake();
        }
    }

    pub(crate) fn change(&mut self, id: u64) -> Option<Change> {
        let held_by_others: BTreeSet<u32> = self
            .members
            .iter()
            .filter(|(other, _)| **other != id)
            .flat_map(|(_, other)| other.held.iter().copied())
            .collect();
        let member = self.members.get_mut(&id)?;
        let surplus: BTreeSet<u32> = member.held.difference(&member.target).copied().collect();
        if !surplus.is_empty() {
            member.releasing.clone_from(&surplus);
            return Some(Change::Revoked(surplus));
        }
        let ready: BTreeSet<u32> = member
            .target
            .difference(&member.held)
            .copied()
            .filter(|partition| !held_by_others.contains(partition))
            .collect();
        if ready.is_empty() {
            return None;
        }
        member.held.extend(ready.iter().copied());
        Some(Change::Assigned(ready))
    }

    pub(crate) fn wake(&self) {
        for member in self.members.values() {
            member.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn set(partitions: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        partitions.into_iter().collect()
    }

    #[test]
    fn a_partition_moves_only_after_it_was_given_up() {
        let mut group = Group { partitions: 4, ..Group::default() };
        let (first, _) = group.join().unwrap();
        assert_eq!(group.change(first), Some(Change::Assigned(set(0..4))));
        let (second, _) = group.join().unwrap();
        assert_eq!(group.change(second), None);
        assert_eq!(group.change(first), Some(Change::Revoked(set(2..4))));
        assert_eq!(group.change(second), None, "the first has not given them up yet");
        group.released(first);
        assert_eq!(group.change(second), Some(Change::Assigned(set(2..4))));
        group.leave(first);
        assert_eq!(group.change(second), Some(Change::Assigned(set(0..2))));
        assert_eq!(group.change(second), None);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Join,
        Leave(usize),
        Next(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Join),
            (0..5usize).prop_map(Step::Leave),
            (0..5usize).prop_map(Step::Next),
            (0..5usize).prop_map(Step::Next)
        ]
    }

    proptest! {
        /// Whatever the members do, no partition has two owners, and in the end each has exactly one and all a fair share.
        #[test]
        fn ownership_is_exclusive_and_becomes_complete(partitions in 1..9u32, steps in vec(step(), 0..60)) {
            let mut group = Group { partitions, ..Group::default() };
            let mut members = vec![group.join().unwrap().0];
            let next = |group: &mut Group, id: u64| {
                group.released(id);
                let change = group.change(id);
                let held: Vec<u32> = group.members.values().flat_map(|member| member.held.iter().copied()).collect();
                assert_eq!(held.len(), set(held.clone()).len(), "two members hold one partition");
                change
            };
            for step in steps {
                match step {
                    Step::Join => members.push(group.join().unwrap().0),
                    Step::Leave(at) if members.len() > 1 => group.leave(members.remove(at % members.len())),
                    Step::Leave(_) => {}
                    Step::Next(at) => drop(next(&mut group, members[at % members.len()])),
                }
            }
            for _ in 0..3 {
                for id in &members {
                    while next(&mut group, *id).is_some() {}
                }
            }
            let sizes: Vec<usize> = group.members.values().map(|member| member.held.len()).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), partitions as usize);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
