//! A plan for people, spreadsheets and documents; JSON is the structure itself.

use std::fmt::Write as _;

use kvwise_core::plan::ledger::Basis;
use kvwise_core::plan::{Performance, Plan, Range, Term};
use kvwise_core::units::{gib, grouped, human_bytes};

use super::table::{Align, Grid};
use super::text::wrap;

/// Columns of the memory bar.
const BAR: usize = 72;

/// Letter of each component in the bar.
fn letter(name: &str) -> char {
    match name {
        "weights" => 'W',
        "activation" => 'a',
        "cuda_graphs" => 'g',
        "non_torch" => 'n',
        "lora" => 'l',
        "drafter" => 'd',
        "buffers" => 'u',
        "overhead" => 'o',
        "cuda_context" => 'c',
        "runtime_reserve" => 'r',
        "compute_buffer" => 'b',
        "kv_cache" => 'K',
        _ => '.',
    }
}

/// The whole answer for a terminal of 80 columns.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    wrap(&mut out, &plan.verdict, "");
    if let Some(fix) = &plan.fix {
        wrap(&mut out, &format!("fix: {fix}"), "  ");
    }
    out.push('\n');
    let engine = match &plan.engine.version {
        Some(version) => format!("{} {version}", plan.engine.name),
        None => plan.engine.name.to_owned(),
    };
    wrap(
        &mut out,
        &format!(
            "{} ({}) on {} x {}, {engine}",
            plan.model.name,
            params(plan),
            plan.gpu.count,
            plan.gpu.name
        ),
        "  ",
    );
    let _ = writeln!(
        out,
        "memory of each GPU: {}, of which the engine uses {}",
        human_bytes(plan.memory.gpu_bytes),
        human_bytes(plan.memory.budget_bytes)
    );
    out.push('\n');
    let _ = writeln!(out, "[{}]", bar(plan));
    out.push('\n');
    out.push_str(&components(plan).text());
    if let Some(kv) = kv_cache(plan) {
        out.push('\n');
        out.push_str(&kv.text());
    }
    if let Some(groups) = groups(plan) {
        out.push('\n');
        out.push_str(&groups.text());
    }
    if !plan.grid.is_empty() {
        out.push('\n');
        out.push_str(&grid(plan).text());
    }
    if let Some(p) = &plan.performance {
        out.push('\n');
        out.push_str(&speed(p).text());
        wrap(&mut out, &format!("speed is {}", p.basis), "  ");
    }
    if !plan.recommended.is_empty() {
        out.push('\n');
        for (flag, advice) in &plan.recommended {
            let text = |key: &str| {
                advice
                    .get(key)
                    .and_then(|v| v.as_str())
                    .unwrap_or_default()
                    .to_owned()
            };
            let line = format!(
                "consider --{} {}: {}",
                flag.replace('_', "-"),
                text("value"),
                text("why")
            );
            wrap(&mut out, &line, "  ");
        }
    }
    for warning in &plan.feasibility.warnings {
        wrap(&mut out, &format!("note: {warning}"), "  ");
    }
    if !plan.steps.is_empty() {
        out.push_str("\nStep by step:\n");
        for (i, step) in plan.steps.iter().enumerate() {
            wrap(
                &mut out,
                &format!("{:>2}. {}: {}", i + 1, step.what, step.result),
                "    ",
            );
            wrap(&mut out, &format!("    = {}", step.how), "      ");
            if let Some(source) = step.source {
                wrap(&mut out, &format!("    [{source}]"), "     ");
            }
        }
    }
    out
}

/// One row a term; the load and the verdict as further rows.
pub fn csv(plan: &Plan) -> String {
    if !plan.grid.is_empty() {
        return csv_grid(plan).csv();
    }
    let mut rows = Grid::new(&[
        ("name", Align::Left),
        ("bytes", Align::Right),
        ("low_bytes", Align::Right),
        ("high_bytes", Align::Right),
        ("basis", Align::Left),
        ("formula", Align::Left),
    ]);
    for term in &plan.memory.components {
        rows.row([
            term.name.to_owned(),
            term.bytes.to_string(),
            term.low_bytes.to_string(),
            term.high_bytes.to_string(),
            term.basis.name().to_owned(),
            term.formula.clone(),
        ]);
    }
    rows.csv()
}

/// The answer for a document.
pub fn markdown(plan: &Plan) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "**{}**\n", plan.verdict);
    if let Some(fix) = &plan.fix {
        let _ = writeln!(out, "Fix: {fix}\n");
    }
    out.push_str(&components(plan).markdown());
    for part in [
        kv_cache(plan),
        groups(plan),
        (!plan.grid.is_empty()).then(|| grid(plan)),
    ]
    .into_iter()
    .flatten()
    {
        out.push('\n');
        out.push_str(&part.markdown());
    }
    if let Some(p) = &plan.performance {
        let _ = writeln!(out, "\n{}\nSpeed is {}.", speed(p).markdown(), p.basis);
    }
    if !plan.feasibility.warnings.is_empty() {
        out.push('\n');
        for warning in &plan.feasibility.warnings {
            let _ = writeln!(out, "- {warning}");
        }
    }
    if !plan.steps.is_empty() {
        out.push('\n');
        for (i, step) in plan.steps.iter().enumerate() {
            let source = step.source.map(|s| format!(" ({s})")).unwrap_or_default();
            let _ = writeln!(
                out,
                "{}. {}: `{}` = **{}**{source}",
                i + 1,
                step.what,
                step.how,
                step.result
            );
        }
    }
    out
}

fn params(plan: &Plan) -> String {
    let billions = |n: u64| format!("{:.2} B", n as f64 / 1e9);
    if plan.model.params_active == plan.model.params {
        format!("{} parameters", billions(plan.model.params))
    } else {
        format!(
            "{} parameters, {} active",
            billions(plan.model.params),
            billions(plan.model.params_active)
        )
    }
}

/// A bar of the GPU's memory with the letters of its components.
fn bar(plan: &Plan) -> String {
    let total: u64 = plan
        .memory
        .components
        .iter()
        .map(|t| t.bytes)
        .fold(0, u64::saturating_add);
    if total == 0 {
        return ".".repeat(BAR);
    }
    let mut out = String::new();
    let mut seen = 0_u128;
    for term in &plan.memory.components {
        seen += u128::from(term.bytes);
        // Each component ends where its share of the running sum ends, so that rounding never adds up.
        let end = usize::try_from(seen * BAR as u128 / u128::from(total)).unwrap_or(BAR);
        while out.len() < end {
            out.push(letter(term.name));
        }
    }
    out
}

fn components(plan: &Plan) -> Grid {
    let mut rows = Grid::new(&[
        ("per GPU", Align::Left),
        ("GiB", Align::Right),
        ("from", Align::Right),
        ("to", Align::Right),
        ("basis", Align::Left),
    ]);
    let two = |bytes: u64| format!("{:.2}", gib(bytes));
    for term in &plan.memory.components {
        let exact = term.basis == Basis::Exact;
        let end = |bytes: u64| if exact { String::new() } else { two(bytes) };
        rows.row([
            label(term),
            two(term.bytes),
            end(term.low_bytes),
            end(term.high_bytes),
            term.basis.name().to_owned(),
        ]);
    }
    rows
}

fn label(term: &Term) -> String {
    let name = match term.name {
        "weights" => "weights",
        "activation" => "activations (peak)",
        "cuda_graphs" => "CUDA graphs",
        "non_torch" => "outside PyTorch",
        "lora" => "LoRA slots",
        "drafter" => "drafter",
        "buffers" => "beside the weights",
        "overhead" => "overhead",
        "kv_cache" => "KV cache",
        "unused" => "left alone",
        other => other,
    };
    format!("{} {name}", letter(term.name))
}

fn kv_cache(plan: &Plan) -> Option<Grid> {
    let kv = plan.kv_cache.as_ref()?;
    let f = &plan.feasibility;
    let mut rows = Grid::new(&[("KV cache", Align::Left), ("", Align::Right)]);
    let mut row = |what: String, value: String| rows.row([what, value]);
    row("type".to_owned(), kv.dtype.clone());
    if kv.block_size > 1 {
        row("tokens in a block".to_owned(), grouped(kv.block_size));
        let bytes: Vec<String> = kv.bytes_per_block.iter().map(|&b| grouped(b)).collect();
        row("bytes of a block".to_owned(), bytes.join(", "));
        row("blocks".to_owned(), grouped(kv.num_blocks));
    }
    row("bytes of one more token".to_owned(), grouped(kv.bytes_per_token));
    row("tokens in all".to_owned(), grouped(kv.capacity_tokens));
    row(
        format!("requests of {} tokens (the longest)", grouped(kv.max_model_len)),
        format!("{:.2}", kv.max_concurrency),
    );
    if let (Some(context), Some(most)) = (f.context, f.max_concurrency_at_context) {
        row(
            format!("whole requests of {} tokens", grouped(context)),
            grouped(most),
        );
    }
    if let Some(longest) = f.max_context_at_concurrency {
        row(
            format!("longest context for {} at once", grouped(f.concurrency)),
            format!("{} tokens", grouped(longest)),
        );
    }
    Some(rows)
}

/// The groups, where there is more than one.
fn groups(plan: &Plan) -> Option<Grid> {
    let kv = plan.kv_cache.as_ref()?;
    if kv.groups.len() < 2 {
        return None;
    }
    let mut rows = Grid::new(&[
        ("group", Align::Left),
        ("layers", Align::Right),
        ("block", Align::Right),
        ("page bytes", Align::Right),
        ("blocks/request", Align::Right),
    ]);
    for group in &kv.groups {
        rows.row([
            group.kind.clone(),
            grouped(group.layers),
            grouped(group.block_size),
            grouped(group.page_bytes),
            grouped(group.blocks_per_request),
        ]);
    }
    Some(rows)
}

/// How fast the load is served.
fn speed(p: &Performance) -> Grid {
    let load = format!(
        "{} {} of {} tokens",
        grouped(p.concurrency),
        if p.concurrency == 1 { "request" } else { "requests" },
        grouped(p.context)
    );
    let mut rows = Grid::new(&[
        (&load, Align::Left),
        ("expected", Align::Right),
        ("from", Align::Right),
        ("to", Align::Right),
        ("datasheet", Align::Right),
    ]);
    for (name, range, bound) in [
        (
            "output tokens a second",
            p.speed.decode_tokens_per_s,
            p.roofline.decode_tokens_per_s,
        ),
        ("ms a token", p.speed.tpot_ms, p.roofline.tpot_ms),
        (
            "prompt tokens a second",
            p.speed.prefill_tokens_per_s,
            p.roofline.prefill_tokens_per_s,
        ),
        ("ms to the first token", p.speed.ttft_ms, p.roofline.ttft_ms),
    ] {
        rows.row([
            name.to_owned(),
            range.expected.map(figure).unwrap_or_default(),
            figure(range.low),
            figure(range.high),
            figure(bound),
        ]);
    }
    rows
}

/// A number with three digits or more.
fn figure(x: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded, above 0, and saturating far beyond any speed"
    )]
    match x {
        x if x >= 99.95 => grouped(x.round() as u64),
        x if x >= 9.995 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}

fn grid(plan: &Plan) -> Grid {
    let mut rows = Grid::new(&[
        ("context", Align::Right),
        ("requests", Align::Right),
        ("fits", Align::Left),
        ("KV GiB", Align::Right),
        ("headroom GiB", Align::Right),
        ("most requests", Align::Right),
        ("longest", Align::Right),
        ("ms/token", Align::Right),
    ]);
    for row in &plan.grid {
        rows.row([
            grouped(row.context),
            grouped(row.concurrency),
            if row.fits { "yes" } else { "no" }.to_owned(),
            format!("{:.2}", gib(row.kv_bytes)),
            format!("{:.2}", row.headroom_bytes.gib()),
            grouped(row.max_concurrency_at_context),
            grouped(row.max_context_at_concurrency),
            row.speed
                .and_then(|s| s.tpot_ms.expected)
                .map(figure)
                .unwrap_or_default(),
        ]);
    }
    rows
}

fn csv_grid(plan: &Plan) -> Grid {
    let mut rows = Grid::new(&[
        ("context", Align::Right),
        ("concurrency", Align::Right),
        ("fits", Align::Left),
        ("kv_bytes", Align::Right),
        ("headroom_bytes", Align::Right),
        ("max_concurrency_at_context", Align::Right),
        ("max_context_at_concurrency", Align::Right),
        ("tpot_ms", Align::Right),
        ("tpot_low_ms", Align::Right),
        ("tpot_high_ms", Align::Right),
        ("ttft_ms", Align::Right),
        ("ttft_low_ms", Align::Right),
        ("ttft_high_ms", Align::Right),
    ]);
    let ends = |range: Option<Range>| {
        let text = |x: Option<f64>| x.map(|x| format!("{x:.3}")).unwrap_or_default();
        [
            text(range.and_then(|r| r.expected)),
            text(range.map(|r| r.low)),
            text(range.map(|r| r.high)),
        ]
    };
    for row in &plan.grid {
        let [tpot, tpot_low, tpot_high] = ends(row.speed.map(|s| s.tpot_ms));
        let [ttft, ttft_low, ttft_high] = ends(row.speed.map(|s| s.ttft_ms));
        rows.row([
            row.context.to_string(),
            row.concurrency.to_string(),
            row.fits.to_string(),
            row.kv_bytes.to_string(),
            row.headroom_bytes.0.to_string(),
            row.max_concurrency_at_context.to_string(),
            row.max_context_at_concurrency.to_string(),
            tpot,
            tpot_low,
            tpot_high,
            ttft,
            ttft_low,
            ttft_high,
        ]);
    }
    rows
}
