//! Rollout plans: which are accepted, and what a wave's cohort is.

use std::collections::BTreeSet;

use longshore_schemas::{
    RegionName,
    events::{Cohort, RefusalCode, RolloutPlan, Wave},
};

use crate::{Config, Decided, refuse};

/// Waves of one plan.
pub const WAVES_MAX: usize = 64;
/// Zones that one wave may name.
pub const ZONES_MAX: usize = 64;
/// A wave bakes at most a week.
pub const BAKE_SECONDS_MAX: u32 = 7 * 24 * 60 * 60;

/// Refuses a plan that contradicts itself or the configuration, naming the field.
pub(crate) fn check(plan: &RolloutPlan, config: &Config) -> Decided {
    if plan.waves.is_empty() {
        return invalid("plan.waves is empty; give at least one wave".into());
    }
    if plan.waves.len() > WAVES_MAX {
        return invalid(format!("plan.waves has {} waves; give at most {WAVES_MAX}", plan.waves.len()));
    }
    if plan.failure_budget_bp > Cohort::EVERYONE_BP {
        let budget = plan.failure_budget_bp;
        return invalid(format!("plan.failure_budget_bp is {budget}; give 0 to 10000 (basis points)"));
    }
    for (index, wave) in plan.waves.iter().enumerate() {
        check_wave(index, wave, config)?;
        for (earlier, before) in plan.waves[..index].iter().enumerate() {
            check_growth(index, wave, earlier, before)?;
        }
    }
    Ok(())
}

fn check_wave(index: usize, wave: &Wave, config: &Config) -> Decided {
    if wave.regions.is_empty() {
        return invalid(format!("plan.waves[{index}].regions is empty; name at least one region"));
    }
    let mut names = BTreeSet::new();
    for region in &wave.regions {
        if !config.regions.contains(region) {
            let known: Vec<&str> = config.regions.iter().map(RegionName::as_str).collect();
            let known = known.join(", ");
            return invalid(format!("plan.waves[{index}].regions: there is no region {region}; there are {known}"));
        }
        if !names.insert(region) {
            return invalid(format!("plan.waves[{index}].regions names {region} twice; name it once"));
        }
    }
    if wave.zones.len() > ZONES_MAX {
        return invalid(format!("plan.waves[{index}].zones has {} zones; give at most {ZONES_MAX}", wave.zones.len()));
    }
    if !(1..=Cohort::EVERYONE_BP).contains(&wave.fraction_bp) {
        let fraction = wave.fraction_bp;
        return invalid(format!("plan.waves[{index}].fraction_bp is {fraction}; give 1 to 10000 (basis points)"));
    }
    if wave.bake_seconds > BAKE_SECONDS_MAX {
        let bake = wave.bake_seconds;
        return invalid(format!("plan.waves[{index}].bake_seconds is {bake}; give at most {BAKE_SECONDS_MAX}"));
    }
    Ok(())
}

/// A later wave never takes fewer of the nodes that an earlier one took from.
fn check_growth(index: usize, wave: &Wave, earlier: usize, before: &Wave) -> Decided {
    let shared = before.regions.iter().find(|region| wave.regions.contains(region));
    let Some(region) = shared.filter(|_| zones_meet(wave, before) && wave.fraction_bp < before.fraction_bp) else {
        return Ok(());
    };
    invalid(format!(
        "plan.waves[{index}].fraction_bp is {}, but plan.waves[{earlier}] reached {} in region {region} already; \
         a rollout only grows: give at least as much",
        wave.fraction_bp, before.fraction_bp
    ))
}

fn zones_meet(a: &Wave, b: &Wave) -> bool {
    a.zones.is_empty() || b.zones.is_empty() || a.zones.iter().any(|zone| b.zones.contains(zone))
}

fn invalid(reason: String) -> Decided {
    refuse(RefusalCode::Invalid, reason)
}

/// The nodes that a wave takes in each of its regions.
pub(crate) fn cohort(wave: &Wave) -> Cohort {
    Cohort { zones: wave.zones.clone(), fraction_bp: wave.fraction_bp }
}

/// Whether every node that may be in `inner` is in `outer`.
pub(crate) fn covers(outer: &Cohort, inner: &Cohort) -> bool {
    let zones_covered = outer.zones.is_empty()
        || (!inner.zones.is_empty() && inner.zones.iter().all(|zone| outer.zones.contains(zone)));
    zones_covered && outer.fraction_bp >= inner.fraction_bp
}

/// Adds a cohort to those that a rollout reached in a region, newest first and without those that others cover.
pub(crate) fn reach(reached: &mut Vec<Cohort>, cohort: Cohort) {
    if !reached.iter().any(|earlier| covers(earlier, &cohort)) {
        reached.retain(|earlier| !covers(&cohort, earlier));
        reached.insert(0, cohort);
    }
}

/// How many targets the whole plan makes in a region.
pub(crate) fn targets(plan: &RolloutPlan, region: &RegionName) -> usize {
    let mut reached = Vec::new();
    for wave in plan.waves.iter().filter(|wave| wave.regions.contains(region)) {
        reach(&mut reached, cohort(wave));
    }
    reached.len()
}

/// Every region that the plan reaches, by name.
pub(crate) fn regions(plan: &RolloutPlan) -> Vec<RegionName> {
    let regions: BTreeSet<&RegionName> = plan.waves.iter().flat_map(|wave| &wave.regions).collect();
    regions.into_iter().cloned().collect()
}

/// Every node of these regions at once, whatever fails: how a rollback spreads.
pub(crate) fn everyone_at_once(regions: Vec<RegionName>) -> RolloutPlan {
    let everyone = Cohort::everyone();
    let wave = Wave { regions, zones: everyone.zones, fraction_bp: everyone.fraction_bp, bake_seconds: 0 };
    RolloutPlan { waves: vec![wave], failure_budget_bp: Cohort::EVERYONE_BP }
}
