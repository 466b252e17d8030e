// SPDX-License-Identifier: Apache-2.0
//
// hymba: generate, chat, perplexity, inspect, logits, tokenize, quantize, train, bench. Results go to standard output,
// everything else to standard error; an error is one line and exit code 2.
#include <hymba/core/error.hpp>
#include <hymba/core/macros.hpp>

#include <exception>
#include <memory>
#include <new>

#include "common.hpp"

namespace {

int fail(const std::string& what) {
  cli::note("hymba: " + what);
  return 2;
}

std::string version() { return cli::message(HYMBA_VERSION_MAJOR, '.', HYMBA_VERSION_MINOR, '.', HYMBA_VERSION_PATCH); }

int run(int argc, char** argv) {
  CLI::App app("Runs Hymba hybrid-head language models on this machine's CPU.", "hymba");
  app.set_version_flag("--version", "hymba " + version(), "Show the version");
  app.footer("hymba COMMAND --help says more, with an example.\n");
  cli::Command command;
  cli::add_generate(app, command);
  cli::add_chat(app, command);
  cli::add_perplexity(app, command);
  cli::add_inspect(app, command);
  cli::add_logits(app, command);
  cli::add_tokenize(app, command);
  cli::add_quantize(app, command);
  cli::add_train(app, command);
  cli::add_bench(app, command);
  app.require_subcommand(0, 1);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    cli::put(app.help());
    return 0;
  } catch (const CLI::CallForAllHelp&) {
    cli::put(app.help("", CLI::AppFormatMode::All));
    return 0;
  } catch (const CLI::CallForVersion&) {
    cli::put("hymba " + version() + '\n');
    return 0;
  } catch (const CLI::ParseError& e) {
    return fail(e.what());
  }
  if (!command) {
    return fail("no command, expected generate, chat, perplexity, inspect, logits, tokenize, quantize, train or bench "
                "(see hymba --help)");
  }
  return command();
}

}  // namespace

int main(int argc, char** argv) {
  cli::spin_briefly(argv);
  cli::prepare_streams();
  try {
    return run(argc, argv);
  } catch (const cli::OutputClosed&) {
    return 141;  // as a program that the signal of a broken pipe ends
  } catch (const cli::UsageError& e) {
    return fail(e.what());
  } catch (const hymba::Error& e) {
    return fail(e.what());
  } catch (const std::bad_alloc&) {
    return fail("not enough memory for the model, its caches or its working memory");
  } catch (const std::exception& e) {
    return fail(e.what());
  } catch (...) {
    return fail("an unknown error");
  }
}
