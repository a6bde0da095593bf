//! Whose word this node takes: of goals, that of the control nodes' key for goals; of what artifacts are made of, that of their key for
//! provenance. The region, its bucket and the peers only carry.
//!
//! The public keys are files, read anew each time: a key is replaced by giving both, old and new, until nothing that matters is signed by
//! the old one, and the agent need not be told.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use longshore_artifact::ArtifactRoot;
use longshore_schemas::{
    envelope::{Envelope, Signature},
    events::{NodeQuery, RegionalGoal, Request},
};
use longshore_signing::{
    TrustedKeys,
    goal::{self, GOAL},
    open, query,
};

use crate::Error;

/// Files of public keys in PEM, each with at least one.
#[derive(Debug, Clone)]
pub struct Trust {
    pub goal_keys: PathBuf,
    pub provenance_keys: PathBuf,
}

impl Trust {
    /// The goal in an envelope, if it is signed as it must be.
    pub fn goal(&self, envelope: &Envelope) -> Result<RegionalGoal, Error> {
        self.goal_by(envelope, &read(&self.goal_keys)?)
    }

    /// The query in an envelope, if it is signed as goals are.
    pub fn query(&self, envelope: &Envelope) -> Result<Request<NodeQuery>, Error> {
        let trusted = read(&self.goal_keys)?;
        query::verify(envelope, &trusted).map_err(|error| Error::Refused(format!("a query is not believed: {error}")))
    }

    fn goal_by(&self, envelope: &Envelope, trusted: &TrustedKeys) -> Result<RegionalGoal, Error> {
        let file = self.goal_keys.display();
        goal::verify(envelope, trusted).map_err(|error| {
            Error::Refused(format!(
                "a goal is not believed: {error}; append the public keys that should be trusted to {file}"
            ))
        })
    }

    /// The goal, and the one form in which it is kept: what else an envelope carries is nobody's word.
    pub fn kept(&self, envelope: &Envelope) -> Result<(RegionalGoal, Envelope), Error> {
        let trusted = read(&self.goal_keys)?;
        let goal = self.goal_by(envelope, &trusted)?;
        let alone = |signature: &Signature| Envelope { signatures: vec![signature.clone()], ..envelope.clone() };
        let opened = envelope.signatures.iter().find_map(|signature| {
            let (payload, key) = open(&GOAL, &alone(signature), &trusted).ok()?;
            Some((payload, key, signature))
        });
        let (payload, key, signature) = opened.ok_or_else(|| Error::Refused("no signature is believed".to_owned()))?;
        let sig = signature.sig.replace('-', "+").replace('_', "/");
        let kept = Envelope {
            payload_type: GOAL.payload_type.to_owned(),
            payload: BASE64.encode(payload),
            signatures: vec![Signature { keyid: key.id(), sig }],
        };
        Ok((goal, kept))
    }

    /// Whether somebody who is trusted says where this artifact comes from.
    pub fn origin(&self, root: &ArtifactRoot) -> Result<(), Error> {
        let trusted = read(&self.provenance_keys)?;
        let refused = |why: &str| Error::Refused(format!("artifact {} is not run: {why}", root.artifact.short()));
        let envelope = root.provenance.as_ref();
        let envelope = envelope.ok_or_else(|| refused("it has no provenance; build it again, or import it"))?;
        let verified = longshore_provenance::verify(envelope, &trusted, &root.artifact);
        verified.map(drop).map_err(|error| refused(&error.to_string()))
    }

    /// What is wrong with the files.
    pub fn check(&self) -> Result<(), Error> {
        read(&self.goal_keys)?;
        read(&self.provenance_keys).map(drop)
    }
}

/// The keys of a file.
pub fn read(file: &Path) -> Result<TrustedKeys, Error> {
    let pem = std::fs::read(file).map_err(Error::io(file))?;
    TrustedKeys::from_pem(&pem).map_err(|error| Error::Refused(format!("{}: {error}", file.display())))
}
