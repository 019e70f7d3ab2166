//! Which of the user's own logs correct the plan of a deployment.

use kvwise_core::Result;
use kvwise_core::engine::{llamacpp, sglang};
use kvwise_core::plan::{Correction, Engine, Hardware, Site};

use super::super::settings;
use super::Deployment;

impl Deployment {
    /// What a site calibration would be kept for; `None` for engines whose memory is not measured.
    pub fn site(&self, model: &str, family: &str, hardware: &Hardware, engine: &Engine) -> Option<Site> {
        let site = |name: &str, version: String, quantization: Option<String>| Site {
            gpu: hardware.name.clone(),
            engine: name.to_owned(),
            engine_version: version,
            family: family.to_owned(),
            model: model.to_owned(),
            tensor_parallel_size: self.tensor_parallel_size.unwrap_or(1),
            pipeline_parallel_size: self.pipeline_parallel_size.unwrap_or(1),
            speculative: None,
            quantization,
        };
        match engine {
            Engine::Vllm(settings) => Some(Site {
                tensor_parallel_size: settings.tensor_parallel_size,
                pipeline_parallel_size: settings.pipeline_parallel_size,
                speculative: settings
                    .speculative
                    .as_ref()
                    .map(|speculative| format!("{:?}", speculative.method).to_ascii_lowercase()),
                ..site(
                    "vllm",
                    format!("{}.{}", settings.version.major, settings.version.minor),
                    settings.quantization.clone(),
                )
            }),
            Engine::Sglang(settings) => Some(Site {
                speculative: settings
                    .speculative
                    .as_ref()
                    .map(|speculative| speculative.algorithm.name().to_ascii_lowercase()),
                ..site(
                    "sglang",
                    sglang::VERSION.to_owned(),
                    settings.quantization.clone(),
                )
            }),
            Engine::LlamaCpp(engine) => Some(Site {
                tensor_parallel_size: engine.settings.gpus,
                ..site("llamacpp", llamacpp::VERSION.to_owned(), engine.mix.clone())
            }),
            Engine::Generic(_) => None,
        }
    }

    /// What the site's logs correct, with a warning that says so. Only vLLM's estimates are scaled by logs of other models.
    pub(super) fn correction(
        &self,
        model: &str,
        family: &str,
        hardware: &Hardware,
        engine: &Engine,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Correction>> {
        let Some(site) = self
            .site(model, family, hardware, engine)
            .filter(|_| !self.no_calibration)
        else {
            return Ok(None);
        };
        let vllm = matches!(engine, Engine::Vllm(_));
        let correction = Correction::choose(&settings::observations()?, &site)
            .filter(|correction| vllm || matches!(correction, Correction::Deployment { .. }));
        warnings.extend(
            correction
                .map(|correction| format!("{}; --no-calibration plans without it", correction.sentence())),
        );
        Ok(correction)
    }
}
