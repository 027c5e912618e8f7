// Names and shapes of the Hugging Face format, derived from our parameter table by rules: the one
// place that knows both. A stored tensor is one parameter, or several stacked along the first axis
// (query, key and value of the MAP head).
import type { ModelConfig, ParameterSpec } from '../model';
import { parameterTable } from '../model';

/** A tensor of a checkpoint and the parameters in it. */
export interface HuggingFaceTensor {
  readonly name: string;
  /** As stored; same elements in the same order as its parts. */
  readonly shape: readonly number[];
  /** Parameters in the order in which they are stacked; one where nothing is. */
  readonly parts: readonly ParameterSpec[];
}

// Applied in order to a path; the first that matches a part of it rewrites that part.
const RULES: readonly (readonly [RegExp, string])[] = [
  [/^logitScale$/u, 'logit_scale'],
  [/^logitBias$/u, 'logit_bias'],
  [/^(vision|text)\./u, '$1_model.'],
  [/\.patchEmbedding\./u, '.embeddings.patch_embedding.'],
  [/_model\.positions$/u, '_model.embeddings.position_embedding.weight'],
  [/_model\.tokens$/u, '_model.embeddings.token_embedding.weight'],
  [/^vision_model\.norm\./u, 'vision_model.post_layernorm.'],
  [/^text_model\.norm\./u, 'text_model.final_layer_norm.'],
  [/\.blocks\.(\d+)\./u, '.encoder.layers.$1.'],
  [/\.norm(\d)\./u, '.layer_norm$1.'],
  [/\.head\.norm\./u, '.head.layernorm.'],
  [/\.head\.attention\.(?:query|key|value)\./u, '.head.attention.in_proj_'],
  [/\.head\.attention\.out\./u, '.head.attention.out_proj.'],
  [/(\.layers\.\d+)\.attention\.query\./u, '$1.self_attn.q_proj.'],
  [/(\.layers\.\d+)\.attention\.key\./u, '$1.self_attn.k_proj.'],
  [/(\.layers\.\d+)\.attention\.value\./u, '$1.self_attn.v_proj.'],
  [/(\.layers\.\d+)\.attention\.out\./u, '$1.self_attn.out_proj.'],
];

/** `vision.blocks.0.norm1.weight` → `vision_model.encoder.layers.0.layer_norm1.weight`. */
export function huggingFaceName(path: string): string {
  return RULES.reduce((name, [pattern, replacement]) => name.replace(pattern, replacement), path);
}

/** Every tensor of a model's checkpoint, in the order of our parameter tree. */
export function huggingFaceTensors(config: ModelConfig): readonly HuggingFaceTensor[] {
  const byName = new Map<string, ParameterSpec[]>();
  for (const parameter of parameterTable(config)) {
    const name = huggingFaceName(parameter.path);
    const parts = byName.get(name);
    if (parts === undefined) byName.set(name, [parameter]);
    else parts.push(parameter);
  }
  return Array.from(byName, ([name, parts]) => ({
    name,
    shape: storedShape(parts, config),
    parts,
  }));
}

function storedShape(parts: readonly ParameterSpec[], { vision }: ModelConfig): readonly number[] {
  const [{ path, shape }] = parts;
  if (path === 'vision.patchEmbedding.weight' && vision.layout === 'fixed') {
    return [vision.width, 3, vision.patch, vision.patch];
  }
  if (path === 'vision.head.probe') return [1, ...shape];
  return parts.length === 1 ? shape : [parts.length * shape[0], ...shape.slice(1)];
}
