//! What a deployment means to the simulator where its words are another engine's, or its format not the checkpoint's.

use kvwise_core::units::parse_count;
use kvwise_core::{Error, Result};

use super::super::deployment::{Deployment, Resolved};

/// The deployment in SGLang's own words: names of vLLM's for the same things are taken too.
///
/// # Errors
/// If both names of one thing are given, or a number cannot be read.
pub(super) fn in_words_of_sglang(deployment: &Deployment) -> Result<Deployment> {
    let twice =
        |a: &str, b: &str| Error::input(format!("{a} and {b} are one setting of SGLang: give one of them"));
    let mut d = deployment.clone();
    if let Some(text) = d.max_num_batched_tokens.take() {
        if d.chunked_prefill_size.is_some() {
            return Err(twice("--max-num-batched-tokens", "--chunked-prefill-size"));
        }
        let tokens = parse_count(&text).map_err(|e| e.at("--max-num-batched-tokens"))?;
        d.chunked_prefill_size =
            Some(i64::try_from(tokens).map_err(|_| Error::overflow("--max-num-batched-tokens"))?);
    }
    if let Some(n) = d.max_num_seqs.take() {
        if d.max_running_requests.is_some() {
            return Err(twice("--max-num-seqs", "--max-running-requests"));
        }
        d.max_running_requests = Some(n);
    }
    if let Some(share) = d.gpu_memory_utilization.take() {
        if d.mem_fraction_static.is_some() {
            return Err(twice("--gpu-memory-utilization", "--mem-fraction-static"));
        }
        d.mem_fraction_static = Some(share);
    }
    Ok(d)
}

/// Looks the deployment up. Where `--quantization` names another format than the checkpoint's, engines refuse to start;
/// the simulator takes it as the question how a checkpoint in that format would do. `fp4` is whichever four-bit float
/// the checkpoint has, else NVFP4.
///
/// # Errors
/// If a name or value cannot be used.
pub(super) fn resolve(deployment: &Deployment, notes: &mut Vec<String>) -> Result<Resolved> {
    let Some(asked) = deployment
        .quantization
        .as_deref()
        .map(str::to_ascii_lowercase)
        .filter(|q| q != "auto" && q != "none")
    else {
        return deployment.resolve();
    };
    let plain = Deployment {
        quantization: None,
        ..deployment.clone()
    };
    let as_it_is = plain.resolve()?;
    let Some(own) = declared(&as_it_is)? else {
        let format = if asked == "fp4" { "nvfp4".to_owned() } else { asked };
        return Deployment {
            quantization: Some(format),
            ..plain
        }
        .resolve();
    };
    let word = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
    let four_bit_float = own.contains("fp4");
    if (asked == "fp4" && four_bit_float)
        || word(&own).contains(&word(&asked))
        || word(&asked).contains(&word(&own))
    {
        return Ok(as_it_is);
    }
    let format = if asked == "fp4" { "nvfp4".to_owned() } else { asked };
    notes.push(format!(
        "the checkpoint is quantised by {own}: simulated as if there were one of the same model in {format}"
    ));
    Deployment {
        quantization: Some(format),
        ..plain
    }
    .resolve()?
    .without_checkpoint_quantization()
}

/// What the checkpoint says it is quantised by; `nvfp4` for makers' tools that say so in another place.
fn declared(resolved: &Resolved) -> Result<Option<String>> {
    let Some((_, config)) = resolved.described() else {
        return Ok(None);
    };
    let Some(q) = config.sub("quantization_config")? else {
        return Ok(None);
    };
    let text = serde_json::Value::Object(q.map().clone()).to_string();
    if text.contains("NVFP4") || text.contains("nvfp4") {
        return Ok(Some("nvfp4".to_owned()));
    }
    Ok(q.str("quant_method")?.map(str::to_ascii_lowercase))
}
