#!/usr/bin/env node
// The command line: one verb per job. Results go to standard output, everything else to standard
// error. Exit status: 0 done, 1 failed, 2 wrong use.
import { Command, CommanderError } from 'commander';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { SiglipError } from '../errors';
import { captionCommand, groundCommand } from './caption';
import { classifyCommand } from './classify';
import { convertCommand } from './convert';
import { curateCommand } from './curate';
import { demoCommand } from './demo';
import { downloadCommand } from './download';
import { embedCommand } from './embed';
import { infoCommand } from './info';
import { mergeCommand } from './merge';
import { regionsCommand } from './regions';
import { planCommand } from './plan';
import { searchCommand } from './search';
import { trainCommand } from './train';

function packageVersion(): string {
  for (let folder = __dirname; ; folder = dirname(folder)) {
    try {
      const content: unknown = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      if (typeof content === 'object' && content !== null && 'version' in content) {
        return String(content.version);
      }
    } catch {
      // Not the package's root: look one folder up.
    }
    if (folder === dirname(folder)) return 'unknown';
  }
}

/** The whole command line, for tests and for the executable. */
export function program(): Command {
  return new Command('siglip2')
    .description('SigLIP 2: embed, classify and search images and texts; train the models')
    .version(packageVersion())
    .showHelpAfterError('(--help shows how to use it)')
    .addCommand(embedCommand())
    .addCommand(mergeCommand())
    .addCommand(classifyCommand())
    .addCommand(searchCommand())
    .addCommand(captionCommand())
    .addCommand(groundCommand())
    .addCommand(curateCommand())
    .addCommand(trainCommand())
    .addCommand(regionsCommand())
    .addCommand(demoCommand())
    .addCommand(planCommand())
    .addCommand(downloadCommand())
    .addCommand(convertCommand())
    .addCommand(infoCommand());
}

function withSubcommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}

/** Runs the command line and gives its exit status. */
export async function main(args: readonly string[]): Promise<number> {
  const command = program();
  for (const each of withSubcommands(command)) each.exitOverride();
  try {
    await command.parseAsync([...args], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof SiglipError) {
      process.stderr.write(`siglip2: ${error.message} (${error.code})\n`);
      return 1;
    }
    throw error;
  }
}

if (require.main === module) {
  void main(process.argv.slice(2)).then((status) => {
    process.exitCode = status;
  });
}
