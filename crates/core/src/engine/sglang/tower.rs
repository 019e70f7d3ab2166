//! Vision towers, as SGLang's memory rule sees them (0.5.23, `srt/arg_groups/memory_hook.py`, `adjust_mem_fraction_for_vlm`).

use super::served;
use super::settings::Settings;
use crate::Result;
use crate::arch::Config;

/// A vision tower, as the memory rule sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vision {
    /// Layers, 24 where the configuration does not say it by this name.
    pub layers: f64,
    /// Width, 1024 where the configuration does not say it by this name.
    pub hidden: f64,
}

impl Vision {
    /// Share of the fraction that is left to weights and cache (0.5.23, `adjust_mem_fraction_for_vlm`): 5 % less, and up
    /// to a fifth less the larger the tower is against a ViT-L/14.
    pub fn share(self) -> f64 {
        let score = self.layers * (self.hidden * self.hidden);
        let ratio = score / (24.0 * (1024.0 * 1024.0));
        let factor = 1.0 - 0.1 * (ratio - 1.0);
        0.95 * factor.clamp(0.8, 1.05)
    }
}

/// The tower of a class that is served as a multimodal model.
pub(super) fn vision(class: &str, config: &Config, settings: &Settings) -> Result<Option<Vision>> {
    if settings.language_model_only || !served::multimodal(class) {
        return Ok(None);
    }
    let Some(tower) = config.sub("vision_config")? else {
        return Ok(None);
    };
    // The engine asks attributes of the tower's configuration: MiniMax-M3's is a plain dictionary, which has none; Kimi's
    // file has them under other names, which K3's class translates and K2.5's replaces by its defaults.
    let size = |key: &str, kimi: &str, default: f64| -> Result<f64> {
        let (named, default) = match class {
            "KimiK25ForConditionalGeneration" => (None, if key == "hidden_size" { 1152.0 } else { 27.0 }),
            "KimiK3ForConditionalGeneration" => {
                (tower.u64(kimi)?, if key == "hidden_size" { 1024.0 } else { 27.0 })
            }
            _ => (None, default),
        };
        Ok(match named.or(tower.u64(key)?) {
            Some(n) if !served::is_minimax_sparse(class) => n as f64,
            _ => default,
        })
    };
    Ok(Some(Vision {
        layers: size("num_hidden_layers", "vt_num_hidden_layers", 24.0)?,
        hidden: size("hidden_size", "vt_hidden_size", 1024.0)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_tower_leaves_less_but_never_below_three_quarters() {
        let at = |layers, hidden| Vision { layers, hidden }.share();
        assert!((at(24.0, 1024.0) - 0.95).abs() < 1e-12);
        assert!(at(27.0, 1152.0) < 0.95);
        assert!((at(100.0, 8192.0) - 0.95 * 0.8).abs() < 1e-12);
        assert!((at(1.0, 8.0) - 0.95 * 1.05).abs() < 1e-12);
    }
}
