// `siglip2 merge`: the folders of shards to the output of one process.
import { Command } from 'commander';
import { mergeShards, outputFormat, outputFormats } from '../bulk';

interface Options {
  readonly output: string;
  readonly format?: string;
  readonly json?: boolean;
}

/** The command. */
export function mergeCommand(): Command {
  return new Command('merge')
    .description('put the shards of `embed --shard` together')
    .argument('<folders...>', 'the folder of every shard')
    .requiredOption('-o, --output <file>', 'where to write')
    .option('--format <format>', `${outputFormats.join(', ')}; default by the output’s name`)
    .option('--json', 'a summary as JSON on standard output')
    .action(merge);
}

async function merge(folders: readonly string[], options: Options): Promise<void> {
  const { output } = options;
  const format = outputFormat(output, options.format);
  const summary = await mergeShards({ folders, output, format });
  const { rows, failures, outputs, failuresFile } = summary;
  if (options.json === true) process.stdout.write(`${JSON.stringify(summary)}\n`);
  const failed = failures === 0 ? '' : `, ${String(failures)} failed: ${String(failuresFile)}`;
  process.stderr.write(`siglip2: ${String(rows)} rows in ${outputs.join(', ')}${failed}\n`);
}
