//! Which service has which port.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use longshore_schemas::ServiceName;

use crate::Error;

/// Ports that a node's services may use, from its base on.
pub const PORTS: u16 = 16;

/// Which service has which port.
pub struct Ports {
    pub base: u16,
    taken: Mutex<BTreeMap<u16, ServiceName>>,
}

impl Ports {
    pub fn new(base: u16) -> Self {
        Self { base, taken: Mutex::default() }
    }

    /// The service's port: the one it had, or the lowest that is free.
    pub(super) fn of(&self, service: &ServiceName, had: Option<u16>) -> Result<u16, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |port: &u16| taken.get(port).is_none_or(|other| other == service);
        let free = |port: &u16| own(port) && std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
        let range = self.base..self.base.saturating_add(PORTS);
        let port = had.filter(own).or_else(|| range.into_iter().find(free));
        let port = port.ok_or(Error::NoPort { base: self.base, tried: PORTS })?;
        taken.insert(port, service.clone());
        Ok(port)
    }
}
