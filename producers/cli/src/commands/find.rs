//! What people call things: a job by its name, an artifact by the beginning of its id, by its name or by its job.

use longshore_schemas::{
    ArtifactId, ArtifactName, JobId,
    http::{ArtifactQuery, ArtifactView, JobQuery, JobView, PAGE_ITEMS_MAX, Page},
};
use longshore_worker::client;

use super::Context;
use crate::{error::Error, output};

/// Shortest beginning of an id.
const PREFIX_CHARS_MIN: usize = 4;
/// How far back an abbreviated id is looked for.
const PAGES_MAX: usize = 10;

impl Context {
    pub(super) async fn job(&self, job: &JobId) -> Result<JobView, client::Error> {
        self.client.get(&["jobs", &job.to_string()]).fetch().await
    }

    pub(super) async fn artifact(&self, artifact: &ArtifactId) -> Result<ArtifactView, client::Error> {
        self.client.get(&["artifacts", &artifact.to_string()]).fetch().await
    }

    /// A job by its id, else the newest of that name: `web-1` may be either.
    pub(super) async fn find_job(&self, text: &str) -> Result<JobView, Error> {
        if let Ok(job) = text.parse::<JobId>() {
            match self.job(&job).await {
                Err(error) if error.status() == Some(404) => {}
                result => return Ok(result?),
            }
        }
        let name: ArtifactName =
            text.parse().map_err(|error| Error::Usage(format!("{text:?} is no job and no name: {error}")))?;
        let query = JobQuery { name: Some(name), limit: Some(1), ..JobQuery::default() };
        let page: Page<JobView> = self.client.get(&["jobs"]).query(&query).fetch().await?;
        let newest = page.items.into_iter().next();
        newest.ok_or_else(|| Error::Refused(format!("no job has the id or name {text}; `longshore jobs` lists them")))
    }

    pub(super) async fn find_artifact(&self, text: &str) -> Result<ArtifactId, Error> {
        let none = |text: &str| {
            Error::Refused(format!("no artifact has the id or name {text}; `longshore artifacts` lists them"))
        };
        if let Ok(artifact) = text.parse::<ArtifactId>() {
            return match self.artifact(&artifact).await {
                Ok(view) => Ok(view.summary.artifact),
                Err(error) if error.status() == Some(404) => Err(none(text)),
                Err(error) => Err(error.into()),
            };
        }
        let (name, wants_name) = match text.split_once('@') {
            None => (text, false),
            Some((name, "latest")) => (name, true),
            Some(_) => return Err(Error::Usage(format!("{text}: only NAME@latest is known"))),
        };
        if !wants_name && let Some(artifact) = self.by_prefix(name).await? {
            return Ok(artifact);
        }
        let parsed = name.parse::<ArtifactName>();
        let parsed = parsed.map_err(|error| Error::Usage(format!("{name:?} is no artifact and no name: {error}")))?;
        let query = ArtifactQuery { name: Some(parsed), limit: Some(1), after: None };
        let page: Page<ArtifactView> = self.client.get(&["artifacts"]).query(&query).fetch().await?;
        match page.items.first().map(|view| view.summary.artifact) {
            Some(newest) => Ok(newest),
            None if wants_name => Err(none(name)),
            None => self.of_job(name).await?.ok_or_else(|| none(name)),
        }
    }

    /// What a job built, if there is such a job.
    async fn of_job(&self, text: &str) -> Result<Option<ArtifactId>, Error> {
        let Ok(job) = text.parse::<JobId>() else { return Ok(None) };
        match self.job(&job).await {
            Ok(JobView { artifact: Some(summary), .. }) => Ok(Some(summary.artifact)),
            Ok(view) => {
                let status = output::word(&view.status);
                Err(Error::Refused(format!(
                    "job {job} has no artifact: it is {status}; `longshore job {job}` says more"
                )))
            }
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn by_prefix(&self, prefix: &str) -> Result<Option<ArtifactId>, Error> {
        let is_prefix = prefix.len() >= PREFIX_CHARS_MIN
            && prefix.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        if !is_prefix {
            return Ok(None);
        }
        let mut query = ArtifactQuery { limit: Some(PAGE_ITEMS_MAX), ..ArtifactQuery::default() };
        let mut found: Option<ArtifactId> = None;
        for _ in 0..PAGES_MAX {
            let page: Page<ArtifactView> = self.client.get(&["artifacts"]).query(&query).fetch().await?;
            for view in page.items {
                let artifact = view.summary.artifact;
                match found {
                    _ if !artifact.to_string().starts_with(prefix) => {}
                    Some(other) if other != artifact => {
                        let both = format!("{} and {}", other.short(), artifact.short());
                        return Err(Error::Usage(format!(
                            "{prefix} is the beginning of {both}, among others; give more of it"
                        )));
                    }
                    _ => found = Some(artifact),
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        Ok(found)
    }
}
