//! Invariant 12: what is left to be done, once nothing goes wrong any more.

use std::collections::BTreeMap;

use longshore_processor::{Order, Range};
use longshore_replication::tables::{ARTIFACTS, Status};
use longshore_schemas::http::RolloutStatus;

use crate::{
    check::{Broken, Checked, broken},
    setting::{KINDS, Kind},
    world::World,
};

impl World {
    /// The first thing that has not come to rest.
    pub(crate) fn left_to_do(&self) -> Option<String> {
        if let Some(send) = self.unacknowledged().first() {
            return Some(format!("request {send} is not acknowledged"));
        }
        if let Some(position) = self.checker.unprocessed() {
            return Some(format!("{}/{} is not processed", position.source, position.offset));
        }
        if let Some(job) = self.unfinished().first() {
            return Some(format!("{job} has not ended"));
        }
        self.replicas_differ()
            .or_else(|| self.artifacts_lack())
            .or_else(|| self.rollouts_go_on())
            .or_else(|| self.agents_work())
    }

    fn replicas_differ(&self) -> Option<String> {
        for (number, control) in self.controls.iter().enumerate() {
            if !control.up {
                return Some(format!("control-{number} is down"));
            }
            for slot in &control.slots {
                let there = self.checker.applied(slot.kind, slot.place.partition).sequence;
                if slot.part.applied().sequence != there {
                    return Some(format!("control-{number} lags behind in {}", slot.name()));
                }
            }
        }
        for index in 0..self.controls[0].slots.len() {
            let leaders = self.controls.iter().filter(|control| control.slots[index].leads()).count();
            if leaders != 1 {
                return Some(format!("{} has {leaders} leaders", self.controls[0].slots[index].name()));
            }
        }
        // Requests of processors and regions are not acknowledged to anybody, and are processed too.
        for kind in KINDS {
            for partition in 0..self.setting.partitions(kind) {
                let of = longshore_log::TopicPartition::new(kind.requests(), partition);
                let last = self.log.records(&of).last().map_or(0, |record| record.offset + 1);
                if self.checker.applied(kind, partition).request_offset < last {
                    return Some(format!("requests of {of} wait"));
                }
            }
        }
        None
    }

    fn artifacts_lack(&self) -> Option<String> {
        for slot in self.controls[0].slots.iter().filter(|slot| slot.kind == Kind::Replication) {
            let rows = ARTIFACTS.list(slot.part.store(), &Range::all(), Order::Ascending, usize::MAX);
            for (artifact, row) in rows.expect("a state in memory") {
                if row.status == Status::Replicating {
                    return Some(format!("{artifact} is not in every region"));
                }
            }
        }
        None
    }

    fn rollouts_go_on(&self) -> Option<String> {
        for slot in self.controls[0].slots.iter().filter(|slot| slot.kind == Kind::Goals) {
            let store = slot.part.store();
            let rows = longshore_goals::tables::SERVICES.list(store, &Range::all(), Order::Ascending, usize::MAX);
            for (service, row) in rows.expect("a state in memory") {
                if row.pending.is_some() {
                    return Some(format!("{service} waits for its pin"));
                }
                let present = longshore_goals::tables::present(store, &service, &row).expect("a state in memory");
                let status = present.map(|(_, revision)| revision.status);
                if matches!(status, Some(RolloutStatus::Rolling | RolloutStatus::Paused)) {
                    return Some(format!("{service} is {status:?}"));
                }
            }
        }
        None
    }

    fn agents_work(&self) -> Option<String> {
        let resting = |region: &&crate::region::Region| !region.is_at_rest();
        if let Some(region) = self.regions.iter().find(resting) {
            return Some(format!("{} has something to tell or to copy", region.name));
        }
        let mut newest = BTreeMap::new();
        for (number, region) in self.regions.iter().enumerate() {
            for signed in region.board.since(0).1 {
                newest.insert((number, signed.goal.service.clone()), signed.goal.version);
            }
        }
        self.nodes.iter().find_map(|node| node.unsettled(&newest))
    }

    /// Every state, of every replica, is what the facts give.
    pub(crate) fn check_states(&self) -> Checked {
        for slot in self.controls.iter().flat_map(|control| &control.slots) {
            self.checker.compare(slot)?;
        }
        Ok(())
    }

    /// Goes on without faults until everything has come to rest.
    pub(crate) fn converge(&mut self, patience: u64) -> Result<(), Broken> {
        self.calm();
        let (until, mut looked_at) = (self.now + patience, self.now);
        while self.step()? {
            if self.now >= looked_at + 1_000 {
                looked_at = self.now;
                if self.left_to_do().is_none() {
                    return self.check_states();
                }
                if self.now > until {
                    break;
                }
            }
        }
        let left = self.left_to_do().unwrap_or_else(|| "nothing moves".to_owned());
        broken(12, format!("{} s after the last fault: {left}", patience / 1_000))
    }
}
