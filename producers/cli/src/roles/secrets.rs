//! Keys and tokens of an installation: made once, the same for every process of it.
//!
//! ```text
//! secrets/tokens.json   what tokens there are, as hashes      secrets/signing.key   makes and checks credentials
//! secrets/s3.key        of the embedded S3 server             tokens/{admin,worker,node}   the tokens, for their owners
//! secrets/authorities/  of each region, what its nodes and processes know each other by: a region needs its own, nodes only its .pem
//! secrets/requests/     what requests are signed with: the control nodes have all of these, a region needs only its own
//! secrets/{provenance,goals}.key  what provenance and goals are signed with, by control nodes only; the .pub beside each is for all who verify
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use longshore_schemas::{
    RegionName,
    auth::{RequestKey, Sender},
    http::Role,
};
use longshore_service::{
    durable, now,
    request_keys::{self, RequestKeys},
    signed::Signer,
    tokens::{self, Tokens},
};

use super::{identity, signing};
use crate::{args::SecretsArgs, defaults::UpTokens, error::Error, output};

const TOKENS: &str = "tokens.json";
const SIGNING_KEY: &str = "signing.key";
const S3_KEY: &str = "s3.key";
const REQUEST_KEYS: &str = "requests";
/// What clients of the embedded S3 server sign with, beside [`S3_KEY`].
pub(crate) const S3_ACCESS_KEY: &str = "longshore";

/// What processes check and make credentials with.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub(crate) tokens: Tokens,
    pub(crate) signer: Signer,
}

/// What [`Secrets::make`] leaves for others, besides the secrets themselves.
pub(crate) struct Made {
    pub(crate) secrets: Secrets,
    pub(crate) request_keys: RequestKeys,
    pub(crate) files: UpTokens,
    pub(crate) s3_secret_key: String,
}

impl Secrets {
    /// Makes what is not there yet, and reads the rest.
    pub(crate) fn make(folder: &Path, tokens_folder: &Path, regions: &[RegionName]) -> anyhow::Result<Made> {
        let list = token_list(folder);
        let mut known = Tokens::load(&list)?;
        let file = |role: Role| tokens_folder.join(tokens::name(role));
        let mut made = false;
        for role in [Role::Admin, Role::Worker, Role::Node] {
            made |= ensure(&mut known, role, &file(role))?;
        }
        if made {
            known.save(&list)?;
        }
        let files = UpTokens { admin: file(Role::Admin), worker: file(Role::Worker), node: file(Role::Node) };
        let signer = Signer::load_or_create(&folder.join(SIGNING_KEY))?;
        let request_keys = RequestKeys::load_or_create(&folder.join(REQUEST_KEYS), regions)?;
        let s3_secret_key = secret(&folder.join(S3_KEY))?;
        for signed in signing::ALL {
            signing::make(signed, folder)?;
        }
        for region in regions {
            identity::authority(folder, region).make(now())?;
        }
        Ok(Made { secrets: Self { tokens: known, signer }, request_keys, files, s3_secret_key })
    }

    /// Reads what was made: a process that made its own would know nobody's tokens.
    pub(crate) fn load(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self { tokens: tokens(folder)?, signer: Signer::load_or_create(&there(folder, SIGNING_KEY)?)? })
    }
}

fn there(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}

/// The tokens of the folder, at least one.
pub(crate) fn tokens(folder: &Path) -> anyhow::Result<Tokens> {
    let tokens = Tokens::load(&there(folder, TOKENS)?)?;
    ensure!(!tokens.records().is_empty(), "{} lists no token", folder.join(TOKENS).display());
    Ok(tokens)
}

/// The list of tokens in the folder of secrets.
pub(crate) fn token_list(folder: &Path) -> PathBuf {
    folder.join(TOKENS)
}

/// What a control node believes and signs with.
pub(crate) fn request_keys(folder: &Path, regions: &[RegionName]) -> anyhow::Result<RequestKeys> {
    let keys = RequestKeys::load(&folder.join(REQUEST_KEYS))?;
    if let Some(region) = regions.iter().find(|region| keys.of(region).is_none()) {
        let file = request_keys::region_file(&folder.join(REQUEST_KEYS), region);
        anyhow::bail!("there is no {}: nothing that region {region} reports would be believed", file.display());
    }
    Ok(keys)
}

/// What a region signs with, and believes its other processes by.
pub(crate) fn region_keys(folder: &Path, region: &RegionName) -> anyhow::Result<Vec<RequestKey>> {
    let file = request_keys::region_file(&folder.join(REQUEST_KEYS), region);
    Ok(request_keys::request_keys(&file, &Sender::Region(region.clone()))?)
}

/// `longshore secrets`
pub(crate) fn run(args: &SecretsArgs) -> Result<(), Error> {
    let made = Secrets::make(&args.folder, &args.folder.join("tokens"), &args.regions)?;
    let UpTokens { admin, worker, node } = made.files;
    output::message(&format!(
        "{} is complete: give every control node a copy without authorities/, and regions one without signing.key, provenance.key and goals.key, and with their own files of requests/ and authorities/ only",
        args.folder.display()
    ));
    for (who, file) in [("people who administer", admin), ("workers", worker), ("nodes that enrol", node)] {
        output::message(&format!("  the token of {who}: {}", file.display()));
    }
    for region in &args.regions {
        let file = identity::authority(&args.folder, region).authorities();
        output::message(&format!("  what nodes of {region} know their region by: {}", file.display()));
    }
    for signed in signing::ALL {
        let public = args.folder.join(signed.public_file);
        output::message(&format!("  what {} are verified with, by every node: {}", signed.what, public.display()));
    }
    Ok(())
}

/// A token of this role, in its file and in the list; says whether it had to be made.
fn ensure(known: &mut Tokens, role: Role, file: &Path) -> anyhow::Result<bool> {
    let kept = durable::read(file)?.and_then(|bytes| String::from_utf8(bytes).ok());
    if kept.is_some_and(|token| known.verify(token.trim()).is_some_and(|identity| identity.role == role)) {
        return Ok(false);
    }
    let (token, record) = tokens::generate(tokens::name(role), role);
    known.push(record);
    durable::write(file, token.as_bytes(), durable::PRIVATE_MODE)?;
    Ok(true)
}

fn secret(path: &Path) -> anyhow::Result<String> {
    if let Some(bytes) = durable::read(path)? {
        return String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()));
    }
    let (secret, _) = tokens::generate("s3", Role::Admin);
    durable::write(path, secret.as_bytes(), durable::PRIVATE_MODE)?;
    Ok(secret)
}
