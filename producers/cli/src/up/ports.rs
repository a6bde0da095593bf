//! Addresses that were picked once and are to be picked again: nodes know their region by its port.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use longshore_service::ledger::Ledger;

pub(super) struct Ports(Ledger<BTreeMap<String, SocketAddr>>);

impl Ports {
    pub(super) fn open(data: &Path) -> anyhow::Result<Self> {
        Ok(Self(Ledger::open(data.join("ports.json"), BTreeMap::new())?))
    }

    /// The address that was kept under this name, if the flag leaves the port open.
    pub(super) fn before(&self, name: &str, listen: SocketAddr) -> SocketAddr {
        let kept = self.0.content().get(name).filter(|kept| listen.port() == 0 && kept.ip() == listen.ip());
        kept.copied().unwrap_or(listen)
    }

    pub(super) fn keep(&mut self, name: &str, address: SocketAddr) -> anyhow::Result<()> {
        Ok(self.0.update(|ports| {
            ports.insert(name.to_owned(), address);
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_port_is_the_one_of_before_and_a_given_one_is_as_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut ports = Ports::open(folder.path()).expect("new");
        assert_eq!(ports.before("eu", address("127.0.0.1:0")), address("127.0.0.1:0"));
        ports.keep("eu", address("127.0.0.1:4000")).expect("written");
        let ports = Ports::open(folder.path()).expect("there");
        assert_eq!(ports.before("eu", address("127.0.0.1:0")), address("127.0.0.1:4000"));
        assert_eq!(ports.before("eu", address("127.0.0.1:5000")), address("127.0.0.1:5000"));
        assert_eq!(ports.before("eu", address("0.0.0.0:0")), address("0.0.0.0:0"));
        assert_eq!(ports.before("us", address("127.0.0.1:0")), address("127.0.0.1:0"));
    }
}
