// Preloaded into a program of MPI, sends DYING_SIGNAL to the process of rank DYING_RANK in its
// DYING_CALL'th call of those below, the first of which is 0: between the program and MPI, where
// MPI has a place for such things.
#include <mpi.h>

#include <csignal>
#include <cstdlib>

namespace {

void count_call() {
  static const int dying_rank = std::atoi(std::getenv("DYING_RANK"));
  static int calls_left = std::atoi(std::getenv("DYING_CALL"));
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == dying_rank && calls_left-- == 0) std::raise(std::atoi(std::getenv("DYING_SIGNAL")));
}

}  // namespace

extern "C" {

int MPI_Comm_size(MPI_Comm comm, int* size) {
  count_call();
  return PMPI_Comm_size(comm, size);
}

int MPI_Allreduce(const void* from, void* to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  count_call();
  return PMPI_Allreduce(from, to, n, type, op, comm);
}

int MPI_Iallreduce(const void* from, void* to, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                   MPI_Request* request) {
  count_call();
  return PMPI_Iallreduce(from, to, n, type, op, comm, request);
}

int MPI_Iallgather(const void* from, int n, MPI_Datatype type, void* to, int n_to,
                   MPI_Datatype type_to, MPI_Comm comm, MPI_Request* request) {
  count_call();
  return PMPI_Iallgather(from, n, type, to, n_to, type_to, comm, request);
}

int MPI_Ibcast(void* bytes, int n, MPI_Datatype type, int root, MPI_Comm comm,
               MPI_Request* request) {
  count_call();
  return PMPI_Ibcast(bytes, n, type, root, comm, request);
}
}
