//! The statement: [in-toto's], version 1, with [SLSA's] provenance, version 1, as its predicate.
//!
//! What Longshore says in it:
//!
//! | field | of a build |
//! |---|---|
//! | `subject[0]` | the artifact's name (`web`), and as `blake3` its identity, the BLAKE3 of its manifest |
//! | `buildDefinition.buildType` | [`BUILD_TYPE`] |
//! | `buildDefinition.externalParameters` | queue, name, repository, commit, output, and digests of command and environment, which may hold what not everyone is to read |
//! | `buildDefinition.resolvedDependencies` | the repository, with the commit as `gitCommit` |
//! | `runDetails.builder.id` | `urn:longshore:worker:` and the worker |
//! | `runDetails.metadata` | the job and attempt, and when it started and finished |
//!
//! Of an import, `buildType` is [`IMPORT_TYPE`], the parameters are name, origin and who imported it, and the origin is the dependency.
//!
//! [in-toto's]: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
//! [SLSA's]: https://slsa.dev/spec/v1.0/provenance

use std::collections::BTreeMap;

use longshore_schemas::{
    ArtifactId, JobId, Timestamp, WorkerId,
    envelope::Envelope,
    events::{ArtifactOrigin, BuildSpec},
};
use longshore_signing::{SigningKey, sign};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, STATEMENT};

pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// A worker ran the command of a build in a checkout of the commit.
pub const BUILD_TYPE: &str = "urn:longshore:build:1";
/// What the digest is called that is an artifact's identity.
pub(crate) const BLAKE3: &str = "blake3";
/// Somebody published what was built elsewhere.
pub const IMPORT_TYPE: &str = "urn:longshore:import:1";
/// What digests commits.
const GIT_COMMIT: &str = "gitCommit";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    pub kind: String,
    pub subject: Vec<Subject>,
    pub predicate_type: String,
    pub predicate: Predicate,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    pub build_definition: BuildDefinition,
    pub run_details: RunDetails,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    pub build_type: String,
    pub external_parameters: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceDescriptor {
    pub uri: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    pub builder: Builder,
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Builder {
    pub id: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_on: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_on: Option<String>,
}

impl Statement {
    /// Reads what was signed. Fields that are not known are passed over, as in-toto wants it.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Error> {
        let statement: Self = serde_json::from_slice(json).map_err(|error| Error::NotProvenance(error.to_string()))?;
        let expected = [(&statement.kind, STATEMENT_TYPE), (&statement.predicate_type, PREDICATE_TYPE)];
        if let Some((found, expected)) = expected.into_iter().find(|(found, expected)| found != expected) {
            let found: String = found.chars().take(100).collect();
            return Err(Error::NotProvenance(format!("it is a {found}, not a {expected}")));
        }
        if statement.subject.len() != 1 {
            let count = statement.subject.len();
            return Err(Error::NotProvenance(format!("it is about {count} things, not about one artifact")));
        }
        Ok(statement)
    }

    pub fn sign(&self, key: &SigningKey) -> Envelope {
        sign(&STATEMENT, &serde_json::to_vec(self).expect("a statement holds nothing that JSON cannot express"), key)
    }

    fn of(artifact: &ArtifactId, name: &str, build_definition: BuildDefinition, run_details: RunDetails) -> Self {
        let digest = BTreeMap::from([(BLAKE3.to_owned(), artifact.to_string())]);
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject { name: name.to_owned(), digest }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate { build_definition, run_details },
        }
    }
}

/// What there is to say of an import: whose word it is, and nothing of how it was built.
pub fn imported(artifact: &ArtifactId, name: &str, origin: &ArtifactOrigin, at: Timestamp) -> Statement {
    let definition = BuildDefinition {
        build_type: IMPORT_TYPE.to_owned(),
        external_parameters: json!({ "name": name, "origin": origin.url, "importedBy": origin.imported_by }),
        resolved_dependencies: vec![ResourceDescriptor { uri: origin.url.clone(), digest: BTreeMap::new() }],
    };
    let metadata = Metadata { finished_on: Some(at.to_string()), ..Metadata::default() };
    let details = RunDetails { builder: Builder { id: "urn:longshore:import".to_owned() }, metadata };
    Statement::of(artifact, name, definition, details)
}

/// What a build's command is known by: the BLAKE3 of its words as a JSON array without spaces.
pub fn digest_of_command(command: &[String]) -> String {
    digest(&json!(command))
}

fn digest(value: &Value) -> String {
    blake3::hash(value.to_string().as_bytes()).to_hex().to_string()
}

/// What there is to say of an attempt that succeeded.
pub fn built(
    artifact: &ArtifactId,
    build: &BuildSpec,
    (job, attempt, worker): (&JobId, u32, &WorkerId),
    started_at: Option<Timestamp>,
    finished_at: Timestamp,
) -> Statement {
    let definition = BuildDefinition {
        build_type: BUILD_TYPE.to_owned(),
        external_parameters: json!({
            "queue": job.queue,
            "name": build.name,
            "repository": build.repository,
            "commit": build.commit,
            "output": build.output,
            "commandDigest": { BLAKE3: digest_of_command(&build.command) },
            "environmentDigest": { BLAKE3: digest(&json!(build.environment)) },
        }),
        resolved_dependencies: vec![ResourceDescriptor {
            uri: format!("git+{}", build.repository),
            digest: BTreeMap::from([(GIT_COMMIT.to_owned(), build.commit.to_string())]),
        }],
    };
    let details = RunDetails {
        builder: Builder { id: format!("urn:longshore:worker:{worker}") },
        metadata: Metadata {
            invocation_id: Some(format!("{job}/{attempt}")),
            started_on: started_at.map(|at| at.to_string()),
            finished_on: Some(finished_at.to_string()),
        },
    };
    Statement::of(artifact, build.name.as_str(), definition, details)
}
