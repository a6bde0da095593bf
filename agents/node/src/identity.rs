//! Who this node is to others: a certificate of its region's authority, got with an enrolment token once and renewed by itself ever after.
//!
//! ```text
//!              ┌────────── no certificate ─▶ Enrol, with the token ──────────┐
//!  which is it? ├── ran out, or refused ────▶ Restore, with the old one's key ┼─▶ certificate, on disk ─▶ connect anew
//!              └── valid ─▶ Hello … half of its life later: Renew ───────────┘
//! ```
//!
//! A key is on disk before a certificate is asked for it, and goes with the certificate that comes: an answer that is lost is asked for
//! again. Whom to believe is what the file of authorities says, and what the region says on top of it, which is how one authority follows
//! another without anybody going to the machines.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_identity::{Credentials, Holder, Key, Named, Tls, Trust, files};
use longshore_schemas::{NodeId, stream::FromNode};
use longshore_service::{durable, now};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::Error;

/// Between two requests for the next certificate.
const RENEWAL_RETRY: Duration = Duration::from_secs(10 * 60);

/// As it is on disk, in one file: what belongs together is replaced together.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    key: Option<String>,
    certificate: Option<String>,
    /// What the region said last.
    authorities: Option<String>,
    revoked: BTreeSet<NodeId>,
}

/// Keeps the node's certificate, on disk and in use.
pub struct CertificateKeeper {
    path: PathBuf,
    node: NodeId,
    authority_file: PathBuf,
    token_file: Option<PathBuf>,
    tls: Arc<Tls>,
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    /// Of the file of authorities, when it was last read.
    authorities: Trust,
    /// The region did not take the certificate.
    is_doubted: bool,
    /// Nor did it give another for it, when it was last asked.
    is_lost: bool,
    /// The key of the next certificate.
    next_key: Option<Key>,
    /// When that was asked for.
    asked: Option<Instant>,
}

/// How the node shows who it is on its next connection.
pub(crate) enum Introduction {
    /// By the certificate that [`Tls`] shows.
    Certificate,
    /// By this message, as a stranger.
    Message(FromNode),
}

impl CertificateKeeper {
    /// What is on disk must be this node's; the file of authorities must be there.
    pub fn open(
        path: PathBuf,
        node: NodeId,
        authority_file: PathBuf,
        token_file: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let authorities = files::read_trust(&authority_file)?;
        let damaged = |reason: &dyn std::fmt::Display| {
            Error::Refused(format!("{}: {reason}; remove it to enrol again", path.display()))
        };
        let kept: Kept = match durable::read(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?,
            None => Kept::default(),
        };
        let credentials = kept.credentials().map_err(|error| damaged(&error))?;
        let trust = kept.trust(&authorities).map_err(|error| damaged(&error))?;
        if let Some(own) = &credentials {
            expect_own(own, &trust, &node).map_err(|reason| damaged(&reason))?;
        }
        let tls = Tls::new(credentials, trust).map_err(Error::Identity)?;
        let state = State { kept, authorities, is_doubted: false, is_lost: false, next_key: None, asked: None };
        Ok(Self { path, node, authority_file, token_file, tls, state: Mutex::new(state) })
    }

    pub fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a certificate there, be it valid or not.
    pub fn has_certificate(path: &Path) -> bool {
        let kept = durable::read(path).ok().flatten().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        kept.is_some_and(|kept| kept.certificate.is_some())
    }

    /// How to begin the next connection, by what there is now: files may have changed.
    pub(crate) fn introduction(&self) -> Result<Introduction, Error> {
        self.follow_authorities();
        let mut state = self.state();
        let is_valid = self.tls.credentials().is_some_and(|own| !own.is_over(now()));
        if is_valid && !state.is_doubted {
            return Ok(Introduction::Certificate);
        }
        match state.kept.certificate.clone() {
            Some(certificate) if !state.is_lost || self.token_file.is_none() => {
                let request = state.kept.key()?.request().map_err(Error::Identity)?;
                Ok(Introduction::Message(FromNode::Restore { certificate, request }))
            }
            _ => {
                // Next time by the certificate again: what was refused may be taken later.
                state.is_lost = false;
                self.enrolment(&mut state)
            }
        }
    }

    /// Takes over what the file of authorities says now. A file that is of no use changes nothing.
    pub(crate) fn follow_authorities(&self) {
        let mut state = self.state();
        let followed = files::read_trust(&self.authority_file).map_err(Error::from).and_then(|authorities| {
            if authorities != state.authorities {
                let trust = state.kept.trust(&authorities)?;
                self.tls.set(self.tls.credentials(), trust).map_err(Error::Identity)?;
                state.authorities = authorities;
            }
            Ok(())
        });
        if let Err(error) = followed {
            let file = self.authority_file.display();
            tracing::warn!(%file, error = error.whole(), "the file of authorities is of no use; what it said before holds");
        }
    }

    fn enrolment(&self, state: &mut State) -> Result<Introduction, Error> {
        let Some(file) = &self.token_file else {
            return Err(Error::Refused("this node has no identity yet: give --token-file to enrol".into()));
        };
        let token = std::fs::read_to_string(file).map_err(Error::io(file))?.trim().to_owned();
        if state.kept.key.is_none() {
            let key = Some(Key::make().map_err(Error::Identity)?.pem());
            self.keep(state, Kept { key, ..state.kept.clone() })?;
        }
        let request = state.kept.key()?.request().map_err(Error::Identity)?;
        Ok(Introduction::Message(FromNode::Enrol { token, node: self.node.clone(), request }))
    }

    /// The region does not take what the node showed, for now or for ever.
    pub(crate) fn refused(&self, introduction: &Introduction) {
        let mut state = self.state();
        match introduction {
            Introduction::Certificate => state.is_doubted = true,
            Introduction::Message(FromNode::Restore { .. }) => state.is_lost = true,
            Introduction::Message(_) => {}
        }
    }

    /// A certificate for the node's key.
    pub(crate) fn certified(&self, certificate: String) -> Result<(), Error> {
        let mut state = self.state();
        let key = state.kept.key()?;
        let taken = self.take(&mut state, &key, certificate);
        (state.is_doubted, state.is_lost) = (false, false);
        taken
    }

    /// Asks for the next certificate, if it is time.
    pub(crate) fn renewal(&self) -> Result<Option<FromNode>, Error> {
        let mut state = self.state();
        let is_due = self.tls.credentials().is_some_and(|own| own.is_due(now()));
        if !is_due || state.asked.is_some_and(|asked| asked.elapsed() < RENEWAL_RETRY) {
            return Ok(None);
        }
        let key = Key::make().map_err(Error::Identity)?;
        let request = key.request().map_err(Error::Identity)?;
        (state.next_key, state.asked) = (Some(key), Some(Instant::now()));
        Ok(Some(FromNode::Renew { request }))
    }

    /// The certificate that [`CertificateKeeper::renewal`] asked for.
    pub(crate) fn renewed(&self, certificate: String) -> Result<(), Error> {
        let mut state = self.state();
        let Some(key) = state.next_key.take() else { return Ok(()) };
        let taken = self.take(&mut state, &key, certificate);
        let until = self.tls.credentials().map(|own| own.until());
        tracing::info!(until = until.map(tracing::field::display), "the node's certificate is renewed");
        taken
    }

    /// It is in use though it may not be on disk: what is there is good for another.
    fn take(&self, state: &mut State, key: &Key, certificate: String) -> Result<(), Error> {
        let credentials = Credentials::new(key, &certificate).map_err(Error::Identity)?;
        let trust = self.tls.trust();
        expect_own(&credentials, &trust, &self.node).map_err(Error::Refused)?;
        self.tls.set(Some(credentials), trust).map_err(Error::Identity)?;
        let kept = Kept { key: Some(key.pem()), certificate: Some(certificate), ..state.kept.clone() };
        self.keep(state, kept)
    }

    /// Whom the region says to believe. It is in force though it may not be on disk.
    pub(crate) fn told(&self, authorities: String, revoked: BTreeSet<NodeId>) -> Result<(), Error> {
        let mut state = self.state();
        let kept = Kept { authorities: Some(authorities), revoked, ..state.kept.clone() };
        if kept == state.kept {
            return Ok(());
        }
        let trust = kept.trust(&state.authorities)?;
        self.tls.set(self.tls.credentials(), trust).map_err(Error::Identity)?;
        self.keep(&mut state, kept)
    }

    fn keep(&self, state: &mut State, kept: Kept) -> Result<(), Error> {
        let json = serde_json::to_vec(&kept).map_err(|error| Error::Refused(error.to_string()))?;
        durable::write(&self.path, &json, durable::PRIVATE_MODE)?;
        state.kept = kept;
        Ok(())
    }
}

impl Kept {
    fn key(&self) -> Result<Key, Error> {
        let pem = self.key.as_deref().unwrap_or_default();
        Key::from_pem(pem).map_err(Error::Identity)
    }

    fn credentials(&self) -> Result<Option<Credentials>, Error> {
        let Some(certificate) = &self.certificate else { return Ok(None) };
        Credentials::new(&self.key()?, certificate).map(Some).map_err(Error::Identity)
    }

    fn trust(&self, authorities: &Trust) -> Result<Trust, Error> {
        let told = self.authorities.as_deref().unwrap_or_default();
        Trust::new(&format!("{}\n{told}", authorities.pem()), self.revoked.clone()).map_err(Error::Identity)
    }
}

/// What the node shows must be its own, of the region that it believes.
fn expect_own(credentials: &Credentials, trust: &Trust, node: &NodeId) -> Result<(), String> {
    let expected = Named { region: trust.region().clone(), holder: Holder::Node(node.clone()) };
    let found = credentials.named();
    if *found == expected { Ok(()) } else { Err(format!("it is the identity of {found}, and this is {expected}")) }
}
