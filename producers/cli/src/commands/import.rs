//! `longshore artifact import`: publishes what was built elsewhere, through the same pipeline as a worker.

use std::{sync::Arc, time::Duration};

use longshore_artifact::Bases;
use longshore_schemas::{
    ArtifactName,
    events::RunSpec,
    http::{ArtifactQuery, ArtifactView, ImportBody, PACKS_MISSING, Page, UploadsAnswer, UploadsBody},
};
use longshore_worker::{
    chain,
    client::{self, Client},
    uploads::{Places, Totals, Uploads},
};

use super::{Context, builds::run_spec, change};
use crate::{args::ImportArgs, error::Error, output};

/// Earlier artifacts of the name that are looked at: what they have need not be uploaded.
const BASES_MAX: u32 = 3;
/// So often it is published once more, if packs are gone.
const AGAIN_MAX: u32 = 2;
/// The server looks for every pack and reads the manifest before it answers.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);

/// Where packs of imports go.
struct ImportPlaces(Client);

#[async_trait::async_trait]
impl Places for ImportPlaces {
    async fn uploads(&self, body: &UploadsBody) -> Result<UploadsAnswer, client::Error> {
        self.0.post(&["imports", "uploads"]).json(body).fetch().await
    }
}

pub(super) async fn run(context: &Context, args: &ImportArgs) -> Result<(), Error> {
    let run = run_spec(&args.run, &args.running)?;
    let bases = bases(context, &args.name).await?;
    let mut published = publish(context, args, &run, bases).await;
    for _ in 0..AGAIN_MAX {
        if !published.as_ref().is_err_and(|error| error.is_problem(PACKS_MISSING)) {
            break;
        }
        // What was there already was collected meanwhile: with nothing that is not looked at anew.
        published = publish(context, args, &run, Bases::default()).await;
    }
    let view = published?;
    context.show(&view, |view| view.summary.artifact.to_string())
}

async fn publish(context: &Context, args: &ImportArgs, run: &RunSpec, bases: Bases) -> Result<ArtifactView, Error> {
    let uploads = Arc::new(Uploads::start(ImportPlaces(context.client.clone()), context.client.plain().clone()));
    let published = longshore_artifact::publish(&args.path, bases, uploads.clone()).await;
    let published = published.map_err(|error| Error::Failed(chain(&error)))?;
    let body = ImportBody {
        name: args.name.clone(),
        origin: args.origin.clone(),
        run: run.clone(),
        root: serde_json::to_value(&published.root).map_err(anyhow::Error::from)?,
        new_pack_bytes: published.new_bytes,
    };
    let call = context.client.post(&["imports"]).json(&body).timeout(IMPORT_TIMEOUT);
    let view = change::<ArtifactView>(call).await?;
    let Totals { uploaded_bytes, there_bytes } = uploads.totals();
    let (uploaded, there) = (output::size(uploaded_bytes), output::size(there_bytes));
    output::message(&format!("{uploaded} were uploaded, {there} were there; the regions copy it now"));
    Ok(view)
}

/// They only save work: one that cannot be read is left out.
async fn bases(context: &Context, name: &ArtifactName) -> Result<Bases, Error> {
    let query = ArtifactQuery { name: Some(name.clone()), limit: Some(BASES_MAX), after: None };
    let page: Page<ArtifactView> = context.client.get(&["artifacts"]).query(&query).fetch().await?;
    let mut bases = Bases::default();
    for view in page.items.into_iter().filter(|view| view.retired_at.is_none()) {
        let artifact = view.summary.artifact;
        match context.index(&artifact).await {
            Ok(index) => bases.add_index(&index),
            Err(error) => output::message(&format!("{} cannot save uploads: {error}", artifact.short())),
        }
    }
    Ok(bases)
}
