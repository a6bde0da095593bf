//! `longshore identity`: who may become a node, who is one no more, and one authority after another. Works on the folder of secrets;
//! processes read what it changes within seconds, wherever the folder's copies are.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;
use longshore_identity::{LIFETIME, files::AuthorityFiles};
use longshore_schemas::{NodeId, RegionName, Timestamp, http::Role};
use longshore_service::{
    now,
    tokens::{self, Enrols, TOKENS_MAX, TokenRecord},
};

use super::secrets;
use crate::{
    args::{AuthorityStep, IdentityArgs, IdentityCommand, NodesOfRegion, TokenArgs},
    error::Error,
    output,
};

const AUTHORITIES: &str = "authorities";

/// A region's authority in the folder of secrets.
pub(crate) fn authority(secrets: &Path, region: &RegionName) -> AuthorityFiles {
    AuthorityFiles::new(&secrets.join(AUTHORITIES), region)
}

/// `longshore identity`
pub(crate) fn run(data: &Path, args: &IdentityArgs) -> Result<(), Error> {
    let folder = args.secrets.clone().unwrap_or_else(|| data.join("secrets"));
    match &args.command {
        IdentityCommand::Token(args) => token(&folder, args)?,
        IdentityCommand::Tokens => tokens_table(&folder)?,
        IdentityCommand::Withdraw(args) => withdraw(&folder, &args.ids)?,
        IdentityCommand::Revoke(args) => {
            each(&folder, args, AuthorityFiles::revoke, ["revoked", "was revoked before"])?;
        }
        IdentityCommand::Restore(args) => {
            each(&folder, args, AuthorityFiles::restore, ["may enrol again", "was not revoked"])?;
        }
        IdentityCommand::Revoked(args) => {
            let revoked = authority(&folder, &args.region).all_revoked().map_err(anyhow::Error::from)?;
            revoked.iter().try_for_each(|node| output::data(node.as_str()))?;
        }
        IdentityCommand::Authority(args) => step(&folder, &args.region, args.step)?,
    }
    Ok(())
}

/// A token for people to hand to machines; it goes to stdout, all else to stderr.
fn token(folder: &Path, args: &TokenArgs) -> anyhow::Result<()> {
    let list = secrets::token_list(folder);
    let mut known = secrets::tokens(folder)?;
    known.retain(|record| !is_over(record, now()));
    ensure!(known.records().len() < TOKENS_MAX, "{} lists {TOKENS_MAX} tokens, which is the most", list.display());
    let until = args.lasts_seconds.map(|seconds| now() + Duration::from_secs(seconds.into()));
    let regions = (!args.regions.is_empty()).then(|| args.regions.iter().cloned().collect::<BTreeSet<_>>());
    let (token, record) = tokens::generate(&args.name, Role::Node);
    let enrols = Enrols { regions, nodes: args.nodes.clone(), once: args.once, until };
    known.push(TokenRecord { enrols: Some(enrols), ..record });
    known.save(&list)?;
    output::data(&token)?;
    output::message(&format!(
        "regions that read {} take it within seconds; the others need a copy of it",
        list.display()
    ));
    Ok(())
}

/// Enough of a token's hash to tell it from others.
fn id(record: &TokenRecord) -> String {
    record.hash.to_hex()[..12].to_owned()
}

fn tokens_table(folder: &Path) -> Result<(), Error> {
    let any = || "any".to_owned();
    let known = secrets::tokens(folder)?;
    let rows = known.records().iter().filter(|record| record.role == Role::Node).map(|record| {
        let enrols = record.enrols.clone().unwrap_or_default();
        let regions =
            enrols.regions.map(|regions| regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(","));
        let until = enrols.until.map_or_else(|| "for ever".to_owned(), |until| until.to_string());
        let names = enrols.nodes.map_or_else(any, |nodes| nodes.to_string());
        let once = if enrols.once { "yes" } else { "no" };
        vec![id(record), record.subject.clone(), regions.unwrap_or_else(any), names, once.to_owned(), until]
    });
    output::data(&output::table(&["ID", "NAME", "REGIONS", "NODES", "ONCE", "UNTIL"], rows.collect()))
}

fn withdraw(folder: &Path, ids: &[String]) -> anyhow::Result<()> {
    let list = secrets::token_list(folder);
    let mut known = secrets::tokens(folder)?;
    for wanted in ids {
        let count = known.records().len();
        known.retain(|record| record.role != Role::Node || id(record) != *wanted);
        ensure!(known.records().len() < count, "{} lists no enrolment token {wanted}", list.display());
    }
    known.save(&list)?;
    output::message(&format!(
        "regions that read {} take it no more within seconds; the others need a copy of it",
        list.display()
    ));
    Ok(())
}

fn is_over(record: &TokenRecord, now: Timestamp) -> bool {
    let until = record.enrols.as_ref().and_then(|enrols| enrols.until);
    until.is_some_and(|until| until <= now)
}

fn each(
    folder: &Path,
    NodesOfRegion { region, nodes }: &NodesOfRegion,
    change: impl Fn(&AuthorityFiles, &NodeId) -> Result<bool, longshore_service::Error>,
    [done, not]: [&str; 2],
) -> anyhow::Result<()> {
    let files = existing(folder, region)?;
    for node in nodes {
        output::message(&format!("node {node} of {region} {}", if change(&files, node)? { done } else { not }));
    }
    output::message(&format!("processes of {region} read {} within seconds", files.revoked().display()));
    Ok(())
}

fn step(folder: &Path, region: &RegionName, step: AuthorityStep) -> anyhow::Result<()> {
    let files = existing(folder, region)?;
    let hours = LIFETIME.as_secs() / 3600;
    let says = match step {
        AuthorityStep::Next => {
            files.add_next(now())?;
            format!(
                "{} has a second authority: when every process and node of {region} has it, go on with `switch`",
                files.authorities().display()
            )
        }
        AuthorityStep::Switch => {
            files.switch()?;
            format!(
                "the next authority of {region} certifies from now on: go on with `drop` in {hours} hours, when no certificate of the old one is left"
            )
        }
        AuthorityStep::Drop => match files.drop_old()? {
            0 => format!("there was no other authority of {region}"),
            _ => format!(
                "only the authority that certifies is believed in {region} from now on: give its file to new nodes"
            ),
        },
    };
    output::message(&says);
    Ok(())
}

/// A typing error should not make files for a region that is not there.
fn existing(folder: &Path, region: &RegionName) -> anyhow::Result<AuthorityFiles> {
    let files = authority(folder, region);
    let path: PathBuf = files.authorities();
    ensure!(
        path.is_file(),
        "there is no {}: `longshore secrets` makes it for every region that it is told of",
        path.display()
    );
    Ok(files)
}
