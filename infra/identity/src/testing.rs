//! For tests: a region's authority without files, and machines that it certified.

use std::{collections::BTreeSet, sync::Arc};

use longshore_schemas::NodeId;

use crate::{Authority, Credentials, Key, Request, Tls, Trust};

/// A region of its own.
pub struct World {
    pub authority: Authority,
    pub trust: Trust,
}

impl World {
    pub fn new(region: &str) -> Self {
        let region = region.parse().expect("a region");
        let (key, pem) = Authority::make(&region, longshore_service::now()).expect("an authority");
        let trust = Trust::new(&pem, BTreeSet::new()).expect("it is one");
        Self { authority: Authority::of(key, &trust).expect("its own key"), trust }
    }

    pub fn credentials(&self, node: &str) -> Credentials {
        let (key, node): (_, NodeId) = (Key::make().expect("a key"), node.parse().expect("a node"));
        let request = Request::from_pem(&key.request().expect("a request")).expect("it is one");
        let certificate = self.authority.certify(&request, &node, longshore_service::now()).expect("certified");
        Credentials::new(&key, &certificate).expect("they fit")
    }

    /// What a node makes connections with.
    pub fn node(&self, node: &str) -> Arc<Tls> {
        Tls::new(Some(self.credentials(node)), self.trust.clone()).expect("TLS")
    }

    /// What a machine makes connections with that has no identity yet.
    pub fn stranger(&self) -> Arc<Tls> {
        Tls::new(None, self.trust.clone()).expect("TLS")
    }

    /// What a process of the region takes connections with.
    pub fn region(&self) -> Arc<Tls> {
        let own = self.authority.own_credentials(longshore_service::now()).expect("certified");
        Tls::new(Some(own), self.trust.clone()).expect("TLS")
    }
}
