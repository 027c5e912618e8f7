// The state a run begins with: new, or taken over from another run whose model or losses differ.
//
// What the other run has in the same form goes over as it is, moments and averages included. What an
// adaptation changes (a position grid, a patch kernel) goes through it. What is new begins at its initial values, an
// average at the parameter it follows; its moments are zero and its updates are counted from now.
import type { DeviceArray } from '../array';
import { SiglipError } from '../errors';
import type { Spec } from '../graph';
import { disposeArrays, elements } from '../graph';
import type { Adaptation, InitialLogits, ParameterSpec } from '../model';
import { initialValues } from '../model';
import type { MomentsEntry, Placement, TrainingPosition, TrainingState } from './checkpoint';
import { latestCheckpoint, openTraining } from './checkpoint';
import type { Averages, AverageSpec, Objective, TrainedParameters } from './objective';

/** Values of one parameter as the other run leaves them, in the shape that this one has. */
export interface InheritedParameter {
  readonly values: Float32Array;
  /** Absent: they begin at zero, and what is absent is counted from now. */
  readonly moments: { readonly m?: Float32Array; readonly v?: Float32Array };
}

/** What a run takes over from another. */
export interface Inheritance {
  /** Updates and pairs of the other run, and when its later parameters entered. */
  readonly position: Pick<TrainingPosition, 'step' | 'pairs' | 'entered'>;
  /** `undefined` for what the other run does not have. */
  parameter(spec: ParameterSpec): Promise<InheritedParameter | undefined>;
  /** `undefined` for what the other run does not have. */
  average(spec: Omit<AverageSpec, 'momentum'>): Promise<Float32Array | undefined>;
  dispose(): void;
}

/**
 * What the latest checkpoint of a folder leaves to a run. With an adaptation of the other run's model,
 * its parameters, their averages and moments go through it; a second moment that it begins anew has a
 * count of its own.
 *
 * @throws ERR_FILE when the folder holds no checkpoint; ERR_WEIGHTS when it is damaged, ERR_SHAPE when a
 * parameter has another shape than the run wants
 */
export async function inheritCheckpoint(
  folder: string,
  adaptation?: Adaptation,
): Promise<Inheritance> {
  const path = await latestCheckpoint(folder);
  if (path === undefined) {
    throw new SiglipError(
      'ERR_FILE',
      `train: ${folder} must hold a checkpoint of the run to go on from, got none`,
    );
  }
  const opened = openTraining(path);
  const { position, tensors } = opened;
  const read = async (name: string): Promise<Float32Array> =>
    Float32Array.from(await tensors.read(name));
  const has = (name: string): boolean => tensors.tensors.has(name);
  return {
    position,
    parameter: async (spec) => {
      const { path: own } = spec;
      const name = `parameters.${own}`;
      if (!has(name)) return undefined;
      const [values, m, v] = [
        await read(name),
        await read(`moments.m.${own}`),
        await read(`moments.v.${own}`),
      ];
      if (adaptation?.changes(own) !== true)
        return { values: shaped(name, values, spec), moments: { m, v } };
      const { reset, ...moments } = adaptation.adaptMoments(own, m, v);
      const adapted = shaped(name, adaptation.adapt(own, values), spec);
      return { values: adapted, moments: reset ? { m: moments.m } : moments };
    },
    average: async (spec) => {
      const name = `averages.${spec.path}`;
      if (!has(name)) return undefined;
      const values = await read(name);
      const adapted = adaptation?.adapt(spec.copyOf ?? spec.path, values) ?? values;
      return shaped(name, adapted, spec);
    },
    dispose: () => {
      opened.dispose();
    },
  };
}

function shaped(name: string, values: Float32Array, spec: Spec): Float32Array {
  if (values.length === elements(spec)) return values;
  throw new SiglipError(
    'ERR_SHAPE',
    `train: ${name} must have shape [${spec.shape.join(', ')}] in the run it goes to, got ` +
      `${String(values.length)} elements\nto do: name the adaptation between the two models`,
  );
}

/** The state of a run that begins at step 0. */
export function freshState(
  objective: Objective,
  seed: number,
  initial: InitialLogits | undefined,
  place: Placement,
): TrainingState<DeviceArray> {
  const followers = followersOf(objective);
  const followed = new Map<string, DeviceArray>();
  const parameters = objective.parametersTree((spec) => {
    const values = initialValues(spec, seed);
    for (const average of followers.get(spec.path) ?? []) {
      followed.set(average.path, place('averages', average, values));
    }
    return place('parameters', spec, values);
  }, initial);
  const zeros = (kind: 'm' | 'v'): TrainedParameters<DeviceArray> =>
    objective.parametersTree((spec) => place(kind, spec, new Float32Array(elements(spec))));
  const averages = objective.averagesTree(
    (spec) => followed.get(spec.path) ?? place('averages', spec, new Float32Array(elements(spec))),
  );
  return { parameters, moments: { m: zeros('m'), v: zeros('v') }, averages };
}

/** The averages that follow a parameter, by the parameter's path. */
function followersOf({ averages }: Objective): ReadonlyMap<string, readonly AverageSpec[]> {
  const followers = new Map<string, AverageSpec[]>();
  for (const spec of averages) {
    if (spec.copyOf === undefined) continue;
    followers.set(spec.copyOf, [...(followers.get(spec.copyOf) ?? []), spec]);
  }
  return followers;
}

/** The state of a run that goes on from another; disposes the inheritance. */
export async function inheritedState(
  objective: Objective,
  inheritance: Inheritance,
  seed: number,
  place: Placement,
): Promise<{ state: TrainingState<DeviceArray>; position: Omit<TrainingPosition, 'data'> }> {
  const { step, pairs } = inheritance.position;
  const entered = new Map<string, MomentsEntry>();
  const arrays = {
    parameters: new Map<string, DeviceArray>(),
    m: new Map<string, DeviceArray>(),
    v: new Map<string, DeviceArray>(),
    averages: new Map<string, DeviceArray>(),
  };
  const followers = followersOf(objective);
  try {
    for (const spec of objective.parameters) {
      const found = await inheritance.parameter(spec);
      const values = found?.values ?? initialValues(spec, seed);
      arrays.parameters.set(spec.path, place('parameters', spec, values));
      for (const average of followers.get(spec.path) ?? []) {
        const known = await inheritance.average(average);
        arrays.averages.set(average.path, place('averages', average, known ?? values));
      }
      const before = entryOf(inheritance.position.entered, spec);
      const entry = { ...before };
      for (const moment of ['m', 'v'] as const) {
        const known = found?.moments[moment];
        if (known === undefined) entry[moment] = step;
        const values = known ?? new Float32Array(elements(spec));
        arrays[moment].set(spec.path, place(moment, spec, values));
      }
      if (entry.m !== 0 || entry.v !== 0) entered.set(spec.path, entry);
    }
    for (const spec of objective.averages) {
      if (spec.copyOf !== undefined) continue;
      const values = (await inheritance.average(spec)) ?? new Float32Array(elements(spec));
      arrays.averages.set(spec.path, place('averages', spec, values));
    }
  } catch (error) {
    disposeArrays(Object.values(arrays).map((map) => Object.fromEntries(map)));
    throw error;
  } finally {
    inheritance.dispose();
  }
  const tree = (map: ReadonlyMap<string, DeviceArray>): TrainedParameters<DeviceArray> =>
    objective.parametersTree(({ path }) => taken(map, path));
  const averages: Averages<DeviceArray> = objective.averagesTree(({ path }) =>
    taken(arrays.averages, path),
  );
  return {
    state: {
      parameters: tree(arrays.parameters),
      moments: { m: tree(arrays.m), v: tree(arrays.v) },
      averages,
    },
    position: { step, updates: 0, pairs, entered: grouped(entered, objective.parameters) },
  };
}

function entryOf(
  entered: Readonly<Record<string, MomentsEntry>>,
  { path }: ParameterSpec,
): MomentsEntry {
  const prefix = Object.keys(entered)
    .filter((key) => path === key || path.startsWith(`${key}.`))
    .sort((a, b) => b.length - a.length)
    .at(0);
  return prefix === undefined ? { m: 0, v: 0 } : entered[prefix];
}

// One entry for a whole branch of the tree whose parameters all entered together.
function grouped(
  entered: ReadonlyMap<string, MomentsEntry>,
  parameters: readonly ParameterSpec[],
): Record<string, MomentsEntry> {
  const branchOf = (path: string): string => path.split('.', 1)[0];
  const branches = new Map<string, Set<string>>();
  for (const { path } of parameters) {
    const entries = branches.get(branchOf(path)) ?? new Set<string>();
    branches.set(branchOf(path), entries.add(JSON.stringify(entered.get(path))));
  }
  const result: Record<string, MomentsEntry> = {};
  for (const [path, entry] of entered) {
    const branch = branchOf(path);
    result[branches.get(branch)?.size === 1 ? branch : path] = entry;
  }
  return result;
}

function taken(map: ReadonlyMap<string, DeviceArray>, path: string): DeviceArray {
  const array = map.get(path);
  if (array === undefined) throw new Error(`inherit: ${path} must be a parameter of the run`);
  return array;
}
