// Starts test programs on several ranks. Where there is no mpirun, or the addon of MPI was not built,
// tests are skipped and counted so.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { addonPath } from '../../lib/native/load';

const ROOT = resolve(__dirname, '..', '..');

/** Whether jobs can be run here. */
export const hasMpi =
  spawnSync('mpirun', ['--version'], { stdio: 'ignore' }).status === 0 &&
  existsSync(join(dirname(addonPath()), 'siglip2_mpi.node'));

/** {@link describe} where jobs can be run, else the same group skipped. */
export const describeMpi = hasMpi ? describe : describe.skip;

export interface JobEnd {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly seconds: number;
}

/**
 * Runs a TypeScript program of this folder's on `ranks` ranks, to its end. More ranks than cores are
 * allowed, and so is root; a rank computes on one thread.
 */
export function mpirun(
  ranks: number,
  program: string,
  args: readonly string[] = [],
  environment: Readonly<Record<string, string>> = {},
): Promise<JobEnd> {
  const began = performance.now();
  const job = spawn(
    'mpirun',
    [
      ...['-n', String(ranks), '--oversubscribe', process.execPath],
      ...['-r', join(ROOT, 'test', 'typescript.js'), join(ROOT, program), ...args],
    ],
    {
      cwd: ROOT,
      env: {
        ...process.env,
        OMPI_ALLOW_RUN_AS_ROOT: '1',
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1',
        // Rank processes are many more than cores here.
        OMPI_MCA_mpi_yield_when_idle: '1',
        OMPI_MCA_hwloc_base_binding_policy: 'none',
        SIGLIP2_THREADS: '1',
        ...environment,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  let stdout = '';
  let stderr = '';
  job.stdout.on('data', (data: Buffer) => (stdout += data.toString()));
  job.stderr.on('data', (data: Buffer) => (stderr += data.toString()));
  return new Promise((resolveEnd, reject) => {
    job.on('error', reject);
    job.on('close', (status) => {
      resolveEnd({ status, stdout, stderr, seconds: (performance.now() - began) / 1000 });
    });
  });
}
