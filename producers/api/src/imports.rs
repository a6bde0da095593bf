//! `POST /v1/imports`: publishes what was built elsewhere. What a worker does with its attempt, a person does here with a role; the checks
//! are the same, and so is what becomes of the artifact.

use axum::{
    Json as Answered,
    extract::State,
    http::{HeaderValue, StatusCode, header},
};
use longshore_collector::Publisher;
use longshore_log::clock;
use longshore_provenance::imported;
use longshore_schemas::{
    events::{ArtifactOrigin, ArtifactRequest, ImportRequested},
    http::{ImportBody, UploadsAnswer, UploadsBody},
};

use crate::{
    attempts::places,
    extract::{App, Asker, Json},
    finish::published,
    problem::{Answer, Failure},
    reads::known_artifact,
    submit::{accepted, answer, submit},
};

/// `POST /v1/imports/uploads`: where to upload packs. Regions are not told of them: they copy an import once it is there.
pub(crate) async fn uploads(State(shared): App, Json(body): Json<UploadsBody>) -> Answer<Answered<UploadsAnswer>> {
    places(&shared, body.packs).await.map(Answered)
}

/// `POST /v1/imports`
pub(crate) async fn import(State(shared): App, asker: Asker, Json(body): Json<ImportBody>) -> Answer {
    let ImportBody { name, origin: url, run, root, new_pack_bytes } = body;
    if url.is_empty() {
        return Err(Failure::invalid("origin: say where it was built, by a URL"));
    }
    let origin = ArtifactOrigin { url, imported_by: asker.actor.clone() };
    let statement = |artifact: &_| imported(artifact, name.as_str(), &origin, clock::now());
    let publisher = Publisher::Import { begun: clock::now() };
    let summary = published(&shared, &publisher, &name, &root, new_pack_bytes, statement).await?;
    let artifact = summary.artifact;
    let submitted = submit(&shared, &asker, ArtifactRequest::from(ImportRequested { summary, origin, run })).await?;
    if !submitted.processed {
        return Ok(accepted(&asker, &submitted));
    }
    let view = known_artifact(&shared, &artifact)?;
    let mut response = submitted.placed(answer(StatusCode::CREATED, &asker, &view));
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/artifacts/{artifact}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
