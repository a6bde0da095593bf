//! What a region's report changes.
//!
//! The parts of a report are read in the order: seen, returned, statuses, lost. What names nodes that never joined is
//! ignored and counted; a report of which nothing is left is refused, naming some of them.

use std::collections::{BTreeMap, BTreeSet};

use longshore_processor::{Decision, StateError, Store};
use longshore_schemas::{
    NodeId, NodeSet, ServiceName, Timestamp,
    events::{
        FleetFact, GoalVersion, NodeDescription, NodeJoined, NodesLost, NodesReported, NodesReturned, RefusalCode,
        RegionReported, StatusReport,
    },
    labels,
    nodes::shard_of,
};

use crate::{
    Fleet, MESSAGE_CHARS_MAX, NODES_PER_SHARD_MAX, SERVICES_PER_SHARD_MAX, Soft,
    tables::{self, NODES, NUMBERS, Node, SERVICES, SHARDS, STATUSES, Status},
};

/// Unknown nodes that a refusal names.
const NAMED_MAX: usize = 5;

impl Fleet {
    pub(crate) fn region_reported(
        &self,
        state: &dyn Store,
        soft: &mut Soft,
        event: &RegionReported,
        now: Timestamp,
    ) -> Result<Decision<FleetFact>, StateError> {
        if let Some(refused) = self.unknown_shard(&event.region, event.shard) {
            return Ok(refused);
        }
        if let Some(reason) = self.contradiction(event) {
            return Ok(Decision::refuse(RefusalCode::Invalid, reason));
        }
        let mut reading = Reading::new(state, event, now)?;
        reading.seen()?;
        reading.returned()?;
        for status in &event.statuses {
            reading.status(status)?;
        }
        reading.lost()?;
        soft.ignore(reading.unknown.len());
        Ok(reading.into_decision())
    }

    /// What cannot be, whatever the state is.
    fn contradiction(&self, event: &RegionReported) -> Option<String> {
        for description in &event.seen {
            let shard = shard_of(&description.node, self.config.shards_per_region);
            if shard != event.shard {
                let (node, shards) = (&description.node, self.config.shards_per_region);
                return Some(format!(
                    "seen: node {node} belongs to shard {shard} of {shards}, not to {}; let the region use {shards} \
                     shards",
                    event.shard
                ));
            }
            if let Err(error) = labels::check(&description.labels) {
                return Some(format!("seen: node {}: {error}", description.node));
            }
        }
        let bad_port = event.statuses.iter().find(|status| u16::try_from(status.port).is_err())?;
        Some(format!("statuses: port {} of service {} is above 65535", bad_port.port, bad_port.service))
    }
}

/// A report while it is read.
struct Reading<'a> {
    state: &'a dyn Store,
    event: &'a RegionReported,
    now: Timestamp,
    /// Nodes that joined with this report; the state does not know them yet.
    joined: BTreeMap<&'a NodeId, (u32, &'a NodeDescription)>,
    next_number: u32,
    came_back: BTreeSet<u32>,
    /// The newest versions that this report told so far.
    told: BTreeMap<(&'a ServiceName, u32), GoalVersion>,
    unknown: Vec<&'a NodeId>,
    refusal: Option<String>,
    facts: Vec<FleetFact>,
}

impl<'a> Reading<'a> {
    fn new(state: &'a dyn Store, event: &'a RegionReported, now: Timestamp) -> Result<Self, StateError> {
        let shard = SHARDS.get(state, &(event.region.clone(), event.shard))?.unwrap_or_default();
        Ok(Self {
            state,
            event,
            now,
            joined: BTreeMap::new(),
            next_number: shard.nodes,
            came_back: BTreeSet::new(),
            told: BTreeMap::new(),
            unknown: Vec::new(),
            refusal: None,
            facts: Vec::new(),
        })
    }

    /// The number of a node; one that never joined is noted as unknown.
    fn number(&mut self, node: &'a NodeId) -> Result<Option<u32>, StateError> {
        if let Some((number, _)) = self.joined.get(node) {
            return Ok(Some(*number));
        }
        let number = self.stored_number(node)?;
        if number.is_none() {
            self.unknown.push(node);
        }
        Ok(number)
    }

    fn stored_number(&self, node: &NodeId) -> Result<Option<u32>, StateError> {
        NUMBERS.get(self.state, &(self.event.region.clone(), self.event.shard, node.clone()))
    }

    fn stored(&self, number: u32) -> Result<Option<Node>, StateError> {
        NODES.get(self.state, &(self.event.region.clone(), self.event.shard, number))
    }

    fn seen(&mut self) -> Result<(), StateError> {
        let event = self.event;
        for description in &event.seen {
            let (number, before) = match self.joined.get(&description.node) {
                Some((number, before)) => (*number, Some((*before).clone())),
                None => match self.stored_number(&description.node)? {
                    Some(number) => (number, self.stored(number)?.map(|node| node.description)),
                    None => (self.next_number, None),
                },
            };
            if before.as_ref() == Some(description) {
                continue;
            }
            if number == self.next_number {
                if number == NODES_PER_SHARD_MAX {
                    self.refusal = Some(format!(
                        "seen: shard {} of region {} has {NODES_PER_SHARD_MAX} nodes, and node {} does not fit in; \
                         use more shards",
                        event.shard, event.region, description.node
                    ));
                    continue;
                }
                self.next_number += 1;
            }
            self.joined.insert(&description.node, (number, description));
            let (region, shard, description) = (event.region.clone(), event.shard, description.clone());
            self.facts.push(NodeJoined { region, shard, number, description }.into());
        }
        Ok(())
    }

    /// A lost node that is seen has returned, even if its region, started anew, does not know that it was lost.
    fn returned(&mut self) -> Result<(), StateError> {
        let event = self.event;
        let seen = event.seen.iter().map(|description| &description.node);
        for node in event.returned.iter().chain(seen) {
            if let Some(number) = self.number(node)?
                && self.stored(number)?.is_some_and(|node| node.lost)
            {
                self.came_back.insert(number);
            }
        }
        let nodes: NodeSet = self.came_back.iter().copied().collect();
        if !nodes.is_empty() {
            let (region, shard) = (event.region.clone(), event.shard);
            self.facts.push(NodesReturned { region, shard, nodes }.into());
        }
        Ok(())
    }

    fn lost(&mut self) -> Result<(), StateError> {
        let event = self.event;
        let mut nodes = Vec::new();
        for node in &event.lost {
            if let Some(number) = self.number(node)? {
                let was_lost = self.stored(number)?.is_some_and(|node| node.lost);
                if !was_lost || self.came_back.contains(&number) {
                    nodes.push(number);
                }
            }
        }
        let nodes: NodeSet = nodes.into_iter().collect();
        if !nodes.is_empty() {
            let (region, shard) = (event.region.clone(), event.shard);
            self.facts.push(NodesLost { region, shard, nodes }.into());
        }
        Ok(())
    }

    /// The nodes of which this says something new. Nothing that a node said of an older version counts.
    fn status(&mut self, report: &'a StatusReport) -> Result<(), StateError> {
        if !self.has_room_for(report)? {
            return Ok(());
        }
        let port = u16::try_from(report.port).unwrap_or(0);
        let message = report.message.as_ref().map(|text| text.chars().take(MESSAGE_CHARS_MAX).collect::<String>());
        let said = Status::new(report.version, report.artifact, report.status, port, message.clone(), self.now);
        let mut nodes = Vec::new();
        for node in &report.nodes {
            let Some(number) = self.number(node)? else { continue };
            let is_news = match self.told.get(&(&report.service, number)) {
                Some(version) => *version <= said.version,
                None => {
                    let key = (self.event.region.clone(), self.event.shard, report.service.clone(), number);
                    let before = STATUSES.get(self.state, &key)?;
                    before.is_none_or(|before| before.version <= said.version && !before.says_same(&said))
                }
            };
            if is_news {
                self.told.insert((&report.service, number), said.version);
                nodes.push(number);
            }
        }
        let nodes: NodeSet = nodes.into_iter().collect();
        if !nodes.is_empty() {
            self.facts.push(
                NodesReported {
                    region: self.event.region.clone(),
                    shard: self.event.shard,
                    service: report.service.clone(),
                    version: report.version,
                    artifact: report.artifact,
                    status: report.status,
                    port: report.port,
                    message,
                    nodes,
                }
                .into(),
            );
        }
        Ok(())
    }

    /// Whether the shard has statuses of this service already, or room for one more.
    fn has_room_for(&mut self, report: &StatusReport) -> Result<bool, StateError> {
        let (region, shard) = (&self.event.region, self.event.shard);
        if SERVICES.contains(self.state, &(region.clone(), shard, report.service.clone()))?
            || tables::services(self.state, region, shard)?.len() < SERVICES_PER_SHARD_MAX
        {
            return Ok(true);
        }
        self.refusal = Some(format!(
            "statuses: shard {shard} of region {region} has {SERVICES_PER_SHARD_MAX} services, and {} does not fit in",
            report.service
        ));
        Ok(false)
    }

    fn into_decision(self) -> Decision<FleetFact> {
        if !self.facts.is_empty() {
            return Decision { facts: self.facts, ..Decision::default() };
        }
        if let Some(reason) = self.refusal {
            return Decision::refuse(RefusalCode::Exhausted, reason);
        }
        if self.unknown.is_empty() {
            return Decision::nothing();
        }
        let named: Vec<&str> = self.unknown.iter().take(NAMED_MAX).map(|node| node.as_str()).collect();
        let reason = format!(
            "{} entries name nodes that never joined shard {} of region {}, such as {}; report them in `seen` first",
            self.unknown.len(),
            self.event.shard,
            self.event.region,
            named.join(", ")
        );
        Decision::refuse(RefusalCode::NotFound, reason)
    }
}
