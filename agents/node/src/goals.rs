//! The goals that this node holds: signed as they came, on disk before anything acts on them, and never going back.
//!
//! A goal that is held and not believed any more, because its key is trusted no longer, changes nothing of what runs; nothing is fetched or
//! started for it, and the region is asked for it anew.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

pub use longshore_node_policy::Wanted;
use longshore_node_policy::is_news;
use longshore_schemas::{
    RegionName, ServiceName,
    envelope::Envelope,
    events::{GoalVersion, RegionalGoal},
};
use longshore_service::ledger::Ledger;
use longshore_signing::goal;
use tokio::sync::watch;

use crate::{Error, trust::Trust};

/// Most services of one node.
pub const SERVICES_MAX: usize = 256;

pub type Goals = BTreeMap<ServiceName, RegionalGoal>;

/// The goals, and a watch on them.
pub struct GoalKeeper {
    trust: Trust,
    ledger: Mutex<Ledger<BTreeMap<ServiceName, Envelope>>>,
    published: watch::Sender<Goals>,
}

/// A goal that was offered, and whether it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub service: ServiceName,
    pub version: GoalVersion,
    pub is_news: bool,
}

impl GoalKeeper {
    pub fn open(path: &Path, trust: Trust) -> Result<Self, Error> {
        let ledger = Ledger::open(path, BTreeMap::<ServiceName, Envelope>::new())?;
        let read = |(service, envelope): (&ServiceName, &Envelope)| {
            let goal = goal::read(envelope).filter(|goal| goal.service == *service);
            let unreadable = || {
                let path = path.display();
                Error::Refused(format!(
                    "{path}: the goal of {service} is none that this version of the agent knows; update it"
                ))
            };
            Ok((service.clone(), goal.ok_or_else(unreadable)?))
        };
        let goals = ledger.content().iter().map(read).collect::<Result<Goals, Error>>()?;
        Ok(Self { trust, ledger: Mutex::new(ledger), published: watch::Sender::new(goals) })
    }

    pub fn watch(&self) -> watch::Receiver<Goals> {
        self.published.subscribe()
    }

    /// Of the goals that are held and believed.
    pub fn versions(&self) -> BTreeMap<ServiceName, GoalVersion> {
        let goals = self.published.borrow();
        let believed = goals.iter().filter(|(service, _)| self.confirm(service).is_ok());
        believed.map(|(service, goal)| (service.clone(), goal.version)).collect()
    }

    /// Takes a goal if it is believed, of this node's region, and newer than the one that is held.
    pub fn accept(&self, envelope: &Envelope, region: &RegionName) -> Result<Offered, Error> {
        let (goal, envelope) = self.trust.kept(envelope)?;
        if goal.region != *region {
            let says = format!("a goal of {} is for region {}, and this is {region}", goal.service, goal.region);
            return Err(Error::Refused(says));
        }
        let (service, version) = (goal.service.clone(), goal.version);
        let held = self.published.borrow().get(&service).map(|held| held.version);
        let is_held_anew = held == Some(version) && self.confirm(&service).is_err();
        if !is_news(held, version) && !is_held_anew {
            return Ok(Offered { service, version, is_news: false });
        }
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() && ledger.content().len() >= SERVICES_MAX {
            return Err(Error::Refused(format!("this node has goals of {SERVICES_MAX} services, the most allowed")));
        }
        ledger.update(|goals| {
            goals.insert(service.clone(), envelope);
        })?;
        self.published.send_modify(|goals| {
            goals.insert(service.clone(), goal);
        });
        Ok(Offered { service, version, is_news: true })
    }

    /// Whether what is held of this service is still to be believed. To be asked before anything is done for it.
    pub fn confirm(&self, service: &ServiceName) -> Result<(), Error> {
        let envelope = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).content().get(service).cloned();
        let envelope = envelope.ok_or_else(|| Error::Refused(format!("no goal of {service} is held")))?;
        self.trust.goal(&envelope).map(drop)
    }
}
