//! Keys and tokens of a data folder, made the first time.

use std::path::Path;

use anyhow::Context as _;
use longshore_schemas::{RegionName, http::Role};
use longshore_service::{
    durable,
    request_keys::RequestKeys,
    signed::Signer,
    tokens::{self, Tokens},
};

use crate::defaults::UpTokens;

pub(super) struct Secrets {
    pub(super) tokens: Tokens,
    pub(super) files: UpTokens,
    pub(super) signer: Signer,
    pub(super) request_keys: RequestKeys,
    /// Of the embedded S3 server.
    pub(super) s3_access_key: String,
    pub(super) s3_secret_key: String,
}

impl Secrets {
    pub(super) fn open(data: &Path, regions: &[RegionName]) -> anyhow::Result<Self> {
        let folder = data.join("secrets");
        let list = folder.join("tokens.json");
        let mut known = Tokens::load(&list)?;
        let file = |role: Role| data.join("tokens").join(tokens::name(role));
        let mut made = false;
        for role in [Role::Admin, Role::Worker, Role::Node] {
            made |= ensure(&mut known, role, &file(role))?;
        }
        if made {
            known.save(&list)?;
        }
        let files = UpTokens { admin: file(Role::Admin), worker: file(Role::Worker), node: file(Role::Node) };
        Ok(Self {
            tokens: known,
            files,
            signer: Signer::load_or_create(&folder.join("signing.key"))?,
            request_keys: RequestKeys::load_or_create(&folder.join("requests"), regions)?,
            s3_access_key: "longshore".to_owned(),
            s3_secret_key: secret(&folder.join("s3.key"))?,
        })
    }
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
