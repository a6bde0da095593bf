//! `longshore artifact verify`: whose word it is that an artifact was built of what it says, and whether it is that artifact.
//!
//! ```text
//! a tree on disk ─published to nowhere─▶ its name ─┐
//! an artifact ─────────────────────────────────────┴▶ envelope ─▶ signature, statement, subject ─▶ with --deep, every chunk
//! ```

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use longshore_artifact::{Bases, PackRef, PackSink, SinkError};
use longshore_provenance::{STATEMENT, Statement, Verified};
use longshore_schemas::{ArtifactId, PackId, envelope::Envelope};
use longshore_service::durable;
use longshore_signing::{TrustedKeys, from_json};
use longshore_worker::chain;
use serde::Serialize;

use super::Context;
use crate::{args::ArtifactVerifyArgs, error::Error, output, roles::signing::PROVENANCE};

#[derive(Serialize)]
struct Report {
    artifact: ArtifactId,
    key: String,
    /// Bytes of the tree or of the packs that were read and are right.
    verified_bytes: u64,
    statement: Statement,
}

pub(super) async fn verify(context: &Context, args: &ArtifactVerifyArgs) -> Result<(), Error> {
    let trusted = trusted(context, args)?;
    let (artifact, tree_bytes) = if args.what.contains('/') {
        name_of(Path::new(&args.what)).await?
    } else {
        (context.find_artifact(&args.what).await?, 0)
    };
    let envelope = envelope(context, args, &artifact).await?;
    let verified = longshore_provenance::verify(&envelope, &trusted, &artifact);
    let Verified { statement, key } =
        verified.map_err(|error| Error::Failed(format!("the provenance of {artifact} is not valid: {error}")))?;
    let deep_bytes = if args.deep { check_packs(context, &artifact).await? } else { 0 };
    let report = Report { artifact, key: key.id(), verified_bytes: tree_bytes.max(deep_bytes), statement };
    context.show(&report, text)
}

fn trusted(context: &Context, args: &ArtifactVerifyArgs) -> Result<TrustedKeys, Error> {
    let here = || context.data.join("secrets").join(PROVENANCE.public_file);
    let file: PathBuf = args.key.clone().unwrap_or_else(here);
    let pem = durable::read(&file).map_err(anyhow::Error::from)?.ok_or_else(|| {
        let (name, made) = (file.display(), PROVENANCE.public_file);
        Error::Usage(format!(
            "there is no {name}: name the file of the keys that you trust with --key; `longshore secrets` made it as {made}"
        ))
    })?;
    TrustedKeys::from_pem(&pem).map_err(|error| Error::Usage(format!("{}: {error}", file.display())))
}

async fn envelope(context: &Context, args: &ArtifactVerifyArgs, artifact: &ArtifactId) -> Result<Envelope, Error> {
    if let Some(file) = &args.envelope {
        let json = durable::read(file).map_err(anyhow::Error::from)?;
        let json = json.ok_or_else(|| Error::Usage(format!("there is no {}", file.display())))?;
        return from_json(&STATEMENT, &json).map_err(|error| Error::Usage(format!("{}: {error}", file.display())));
    }
    let asked = context.client.get(&["artifacts", &artifact.to_string(), "provenance"]).fetch().await;
    match asked {
        Err(error) if error.status() == Some(404) && args.what.contains('/') => Err(Error::Failed(format!(
            "{} is {artifact}, of which the server has no provenance: it is not what was built, or was changed since",
            args.what
        ))),
        other => Ok(other?),
    }
}

/// Takes packs and keeps none.
struct Nowhere;

#[async_trait::async_trait]
impl PackSink for Nowhere {
    async fn put(&self, _: PackId, _: Bytes) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Which artifact a tree is, by all its bytes, modes and links; and how large it is.
async fn name_of(tree: &Path) -> Result<(ArtifactId, u64), Error> {
    let published = longshore_artifact::publish(tree, Bases::default(), Arc::new(Nowhere)).await;
    let root = published.map_err(|error| Error::Failed(chain(&error)))?.root;
    Ok((root.artifact, root.size_bytes))
}

/// Reads every pack of the artifact, and checks every chunk in it. Keeps none.
async fn check_packs(context: &Context, artifact: &ArtifactId) -> Result<u64, Error> {
    let index = Arc::new(context.index(artifact).await?);
    let packs = index.layout.packs().to_vec();
    let chunks: HashMap<PackId, _> = packs.iter().map(|pack| pack.pack).zip(index.chunks_by_pack()).collect();
    let of = index.clone();
    let keep = move |pack: &PackRef, bytes: Bytes| {
        let chunks = chunks.get(&pack.pack).context("a pack of the layout")?;
        of.check_pack(chunks, &bytes).map_err(|error| anyhow!("the main bucket has it damaged: {error}"))
    };
    context.packs(artifact, packs, Arc::new(keep)).await?;
    Ok(index.root.size_bytes)
}

fn text(report: &Report) -> String {
    let Report { artifact, key, verified_bytes, statement } = report;
    let definition = &statement.predicate.build_definition;
    let details = &statement.predicate.run_details;
    let sources = definition.resolved_dependencies.iter().map(|source| {
        let digests: Vec<_> = source.digest.values().map(String::as_str).collect();
        format!("{} {}", source.uri, digests.join(" "))
    });
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let bytes = match verified_bytes {
        0 => "not read; --deep reads them".to_owned(),
        bytes => format!("{}, all right", output::size(*bytes)),
    };
    let lines = [
        ("artifact", artifact.to_string()),
        ("name", statement.subject.iter().map(|subject| subject.name.as_str()).collect()),
        ("signed by", format!("key {}", &key[..12.min(key.len())])),
        ("bytes", bytes),
        ("made by", details.builder.id.clone()),
        ("as", format!("{} {}", definition.build_type, or_none(&details.metadata.invocation_id))),
        ("of", sources.collect::<Vec<_>>().join(", ")),
        ("finished", or_none(&details.metadata.finished_on)),
    ];
    let lines: Vec<_> = lines.into_iter().map(|(name, value)| format!("{name:<9} {value}")).collect();
    format!("{}\n\nthe provenance is valid", lines.join("\n"))
}
