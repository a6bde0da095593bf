//! A client of the API, as a service would write one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use longshore_schemas::{
    ArtifactId, JobId,
    http::{
        ArtifactStatus, ArtifactView, BuildBody, DeployBody, IDEMPOTENCY_KEY, JobStatus, JobView, NodeView, Page,
        Problem, RollbackBody, ServiceView,
    },
};
use reqwest::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::process::wait_for;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub api: String,
    pub token: String,
}

/// An answer that is a problem.
#[derive(Debug, Clone)]
pub struct Refusal(pub Problem);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.0.status, self.0.title, self.0.detail)
    }
}

impl std::error::Error for Refusal {}

impl Client {
    pub fn new(api: &str, token: &str) -> Result<Self> {
        // The second call of a process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        Ok(Self { http, api: api.trim_end_matches('/').to_owned(), token: token.to_owned() })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Asks again until there is an answer that stays: the same key makes it one request, however often it is sent.
    pub async fn post_until<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        key: &str,
        bound: Duration,
    ) -> Result<Result<T, Refusal>> {
        wait_for(&format!("an answer to {key}"), bound, async || {
            let url = format!("{}{path}", self.api);
            let request = self.http.post(url).bearer_auth(&self.token).header(IDEMPOTENCY_KEY, key).json(body);
            let response = request.send().await?;
            let (status, bytes) = (response.status(), response.bytes().await?);
            if status == StatusCode::ACCEPTED || status.is_server_error() {
                bail!("{key}: {status} {}", String::from_utf8_lossy(&bytes));
            }
            let read = || format!("{key}: {status} {}", String::from_utf8_lossy(&bytes));
            Ok(Some(if status.is_success() {
                Ok(serde_json::from_slice(&bytes).with_context(read)?)
            } else {
                Err(Refusal(serde_json::from_slice(&bytes).with_context(read)?))
            }))
        })
        .await
    }

    /// The wall clock of the server, as its answers show it.
    pub async fn date(&self) -> Result<String> {
        let response = self.http.get(format!("{}/v1/whoami", self.api)).bearer_auth(&self.token).send().await?;
        let date = response.headers().get("date").context("an answer has a date")?;
        Ok(date.to_str()?.to_owned())
    }

    pub async fn text(&self, path: &str) -> Result<String> {
        let url = format!("{}{path}", self.api);
        let response = self.http.get(url).bearer_auth(&self.token).send().await?;
        if !response.status().is_success() {
            bail!("GET {path} answered {}: {}", response.status(), response.text().await?);
        }
        Ok(response.text().await?)
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.api)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let bytes = response.bytes().await?;
        if status.is_success() && status != StatusCode::ACCEPTED {
            return serde_json::from_slice(&bytes)
                .with_context(|| format!("{method} {path} answered {}", String::from_utf8_lossy(&bytes)));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(Refusal(problem).into()),
            Err(_) => bail!("{method} {path} answered {status}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    pub async fn build(&self, body: &BuildBody) -> Result<JobView> {
        self.post("/v1/builds", body).await
    }

    pub async fn job(&self, job: &JobId) -> Result<JobView> {
        self.get(&format!("/v1/jobs/{job}")).await
    }

    pub async fn job_ended(&self, job: &JobId, bound: Duration) -> Result<JobView> {
        wait_for(&format!("job {job} to end"), bound, async || {
            Ok(Some(self.job(job).await?).filter(|view| view.status.is_ended()))
        })
        .await
    }

    /// Has an artifact built, and waits until it can be deployed. An error if the build fails, or either takes longer than `bound`.
    pub async fn publish(&self, build: &BuildBody, bound: Duration) -> Result<ArtifactId> {
        let job = self.build(build).await?;
        let job = self.job_ended(&job.job, bound).await?;
        ensure!(job.status == JobStatus::Succeeded, "the build ended as {:?}: {:?}", job.status, job.failure);
        let artifact = job.artifact.context("an artifact")?.artifact;
        wait_for("the artifact to be deployable", bound, async || {
            Ok((self.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(artifact))
        })
        .await
    }

    pub async fn artifact(&self, artifact: &ArtifactId) -> Result<ArtifactView> {
        self.get(&format!("/v1/artifacts/{artifact}")).await
    }

    pub async fn deploy(&self, service: &str, body: &DeployBody) -> Result<ServiceView> {
        self.post(&format!("/v1/services/{service}/deploys"), body).await
    }

    pub async fn rollback(&self, service: &str, body: &RollbackBody) -> Result<ServiceView> {
        self.post(&format!("/v1/services/{service}/rollbacks"), body).await
    }

    pub async fn service(&self, service: &str) -> Result<ServiceView> {
        self.get(&format!("/v1/services/{service}")).await
    }

    /// Waits until a service's view satisfies the condition.
    pub async fn service_when(
        &self,
        service: &str,
        what: &str,
        bound: Duration,
        condition: impl Fn(&ServiceView) -> bool,
    ) -> Result<ServiceView> {
        wait_for(&format!("service {service} {what}"), bound, async || {
            Ok(Some(self.service(service).await?).filter(|view| condition(view)))
        })
        .await
    }

    pub async fn nodes(&self) -> Result<Vec<NodeView>> {
        Ok(self.get::<Page<NodeView>>("/v1/nodes?limit=1000").await?.items)
    }
}
