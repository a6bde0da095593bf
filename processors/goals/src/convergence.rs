//! How a rollout goes on: levels come in, waves pass or the rollout halts.

use longshore_planted::{Bug, planted};
use longshore_processor::{StateError, Store};
use longshore_schemas::{
    ServiceName, Timestamp,
    events::{
        Convergence, ConvergenceRecorded, ConvergenceReported, RefusalCode, RolloutCompleted, RolloutHalted,
        WavePassed, WaveStarted,
    },
    http::RolloutStatus,
};

use crate::{
    Decided, Goals, clip,
    deploys::next_step,
    draft::Draft,
    outputs, refuse,
    tables::{self, LEVELS, Revision, SERVICES},
    timers::Soft,
};

/// A wave's shards together, once each of them has answered.
struct WaveLevel {
    level: Convergence,
    failure: Option<String>,
    /// Since when every eligible node is converged or failed; None while some are neither.
    settled_since: Option<Timestamp>,
}

impl Goals {
    pub(crate) fn convergence_reported(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        event: &ConvergenceReported,
    ) -> Decided {
        self.check_level(draft, event)?;
        let present = SERVICES.get(draft.state(), &event.service)?.unwrap_or_default().version;
        let key = (event.service.clone(), event.region.clone(), event.shard);
        let before = LEVELS.get(draft.state(), &key)?.map(|row| (row.version, row.level));
        let older = before.is_some_and(|(version, _)| event.version < version);
        let same = before == Some((event.version, event.level));
        if event.version.revision < present.revision || older || same {
            return Ok(());
        }
        draft.fact(ConvergenceRecorded {
            service: event.service.clone(),
            region: event.region.clone(),
            shard: event.shard,
            version: event.version,
            level: event.level,
            failure: event.failure.as_deref().map(clip),
        })?;
        Ok(self.go_on(draft, soft, &event.service)?)
    }

    fn check_level(&self, draft: &Draft<'_>, event: &ConvergenceReported) -> Decided {
        let ConvergenceReported { service, region, shard, version, level, .. } = event;
        let Some(row) = SERVICES.get(draft.state(), service)? else {
            return refuse(RefusalCode::NotFound, format!("there is no service {service} to report a level of"));
        };
        let shards = self.config.shards_per_region;
        if !self.config.regions.contains(region) || *shard >= shards {
            let reason = format!("there is no shard {shard} of region {region}; each region has {shards} shards");
            return refuse(RefusalCode::Invalid, reason);
        }
        if *version > row.version {
            let reason = format!("version {version} of service {service} does not exist; it is at {}", row.version);
            return refuse(RefusalCode::Invalid, reason);
        }
        if level.converged.saturating_add(level.failed) > level.eligible {
            let Convergence { eligible, converged, failed } = level;
            let reason = format!("level: {converged} converged and {failed} failed are more than {eligible} eligible");
            return refuse(RefusalCode::Invalid, reason);
        }
        Ok(())
    }

    /// Starts a wave of the present goal: its regions and shards learn of it.
    pub(crate) fn start_wave(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        service: &ServiceName,
        wave: u32,
    ) -> Result<(), StateError> {
        let version = next_step(&SERVICES.expect(draft.state(), service)?);
        soft.unsettled(service);
        draft.fact(WaveStarted { service: service.clone(), version, wave })?;
        self.publish(draft, service)?;
        self.announce(draft, service)
    }

    /// Halts a rollout whose failures exceed the budget; passes a wave that has settled and baked.
    pub(crate) fn go_on(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        service: &ServiceName,
    ) -> Result<(), StateError> {
        soft.unsettled(service);
        let row = SERVICES.expect(draft.state(), service)?;
        let Some((_, revision)) = tables::present(draft.state(), service, &row)? else { return Ok(()) };
        if revision.status != RolloutStatus::Rolling {
            return Ok(());
        }
        let Some(wave) = self.wave_level(draft.state(), service, &revision)? else { return Ok(()) };
        let allowed = allowed_failures(wave.level.eligible, revision.plan.failure_budget_bp);
        if wave.level.failed > allowed && !planted(Bug::IgnoreFailureBudget) {
            return self.halt(draft, service, &revision, wave, allowed);
        }
        let Some(settled_since) = wave.settled_since else { return Ok(()) };
        let due = settled_since + bake(&revision);
        if due > draft.now {
            soft.settled(service, due);
            return Ok(());
        }
        self.pass(draft, soft, service, &revision, wave.level)
    }

    fn halt(
        &self,
        draft: &mut Draft<'_>,
        service: &ServiceName,
        revision: &Revision,
        wave: WaveLevel,
        allowed: u32,
    ) -> Result<(), StateError> {
        let version = next_step(&SERVICES.expect(draft.state(), service)?);
        draft.fact(RolloutHalted {
            service: service.clone(),
            version,
            wave: revision.wave,
            level: wave.level,
            allowed,
            failure: wave.failure,
        })?;
        self.publish(draft, service)
    }

    fn pass(
        &self,
        draft: &mut Draft<'_>,
        soft: &mut Soft,
        service: &ServiceName,
        revision: &Revision,
        level: Convergence,
    ) -> Result<(), StateError> {
        let version = SERVICES.expect(draft.state(), service)?.version;
        let wave = revision.wave;
        draft.fact(WavePassed { service: service.clone(), version, wave, level })?;
        if (wave as usize) + 1 < revision.plan.waves.len() {
            return self.start_wave(draft, soft, service, wave + 1);
        }
        let before = outputs::kept(draft.state(), service)?;
        draft.fact(RolloutCompleted { service: service.clone(), revision: revision.revision })?;
        outputs::repin(draft, service, &before)
    }

    /// None until every shard of every region of the wave has answered the last announcement. Before that, a budget of
    /// the nodes that happen to be counted already would halt a rollout for failures that the whole wave may have.
    fn wave_level(
        &self,
        state: &dyn Store,
        service: &ServiceName,
        revision: &Revision,
    ) -> Result<Option<WaveLevel>, StateError> {
        let Some(wave) = revision.plan.waves.get(revision.wave as usize) else { return Ok(None) };
        let mut sum = Convergence::default();
        let mut failure = None;
        let mut settled_since = Some(Timestamp::default());
        for region in &wave.regions {
            for shard in 0..self.config.shards_per_region {
                let row = LEVELS.get(state, &(service.clone(), region.clone(), shard))?;
                let row = row.filter(|row| row.version == revision.announced);
                if row.is_none() && planted(Bug::PassBeforeAllAnswered) {
                    continue;
                }
                let Some(row) = row else { return Ok(None) };
                sum += row.level;
                failure = failure.or(row.failure.filter(|_| row.level.failed > 0));
                settled_since = settled_since.zip(row.settled_since).map(|(a, b)| a.max(b));
            }
        }
        Ok(Some(WaveLevel { level: sum, failure, settled_since }))
    }
}

/// How many of a wave's nodes may fail: the budget's share, rounded down.
fn allowed_failures(eligible: u32, budget_bp: u32) -> u32 {
    let allowed = u64::from(eligible) * u64::from(budget_bp) / 10_000;
    u32::try_from(allowed).unwrap_or(u32::MAX)
}

fn bake(revision: &Revision) -> std::time::Duration {
    let seconds = revision.plan.waves.get(revision.wave as usize).map_or(0, |wave| wave.bake_seconds);
    std::time::Duration::from_secs(u64::from(seconds))
}
